# SPDX-License-Identifier: Apache-2.0
"""What a protocol hands back: figures, and everything needed to read and repeat them."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from opendino import __version__
from opendino.config import flatten
from opendino.errors import ConfigError
from opendino.eval.adapters import Adapter, Backbone
from opendino.files import write_whole


@dataclass(frozen=True)
class Results:
    """Outcome of one protocol on one model.

    Attributes:
        protocol: name of the protocol's file, such as "knn".
        figures: name to value; accuracies in percent.
        data: what it was measured on: sources, numbers of images, classes and unreadable files.
        model: what was measured: source, hash and shape; and the `command` that asked for it, where one did.
        config: every setting, resolved.
        seconds: wall time of the protocol.
        notes: sentences a reader of the figures should know.
    """

    protocol: str
    figures: dict[str, float]
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def file_name(self) -> str:
        """Name for the JSON file: equal weights, settings and data overwrite each other, others do not."""
        source = str(self.data.get("val", self.data.get("source", "data"))).rstrip("/")
        stem = "-".join(Path(source).with_suffix("").parts[-2:])
        told_apart_by = [self.config, self.data, self.model.get("sha256", self.model)]
        key = hashlib.sha256(json.dumps(told_apart_by, sort_keys=True, default=str).encode()).hexdigest()[:6]
        return f"{self.protocol}-{re.sub('[^A-Za-z0-9._-]+', '', stem)}-{key}.json"

    def write(self, folder: Path | str) -> Path:
        """Write the JSON file into a folder, which is made; a reader never sees half a file.

        Raises:
            ConfigError: the folder cannot be written.
        """
        path = Path(folder) / self.file_name()
        return write_whole(path, json.dumps(self.to_dict(), indent=2) + "\n", error=ConfigError)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON; the command and all seeds among the settings stand by themselves."""
        model = dict(self.model)
        command = model.pop("command", "")
        seeds = {key: value for key, value in flatten(self.config).items() if key.split(".")[-1] == "seed"}
        own = {**asdict(self), "model": model, "notes": list(self.notes)}
        return {**own, "seeds": seeds, "command": command, "opendino": __version__}

    def table(self) -> str:
        """Markdown table of the figures, followed by the notes."""
        lines = markdown_table(["figure", "value"], [[name, number(value)] for name, value in self.figures.items()])
        return "\n".join([lines, *(f"note: {note}" for note in self.notes)])


def read(path: Path | str) -> Results:
    """Results from a JSON file that `Results.write` wrote."""
    fields: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    command = fields.pop("command", "")
    if command:
        fields["model"]["command"] = command
    for name in ("opendino", "seeds"):
        fields.pop(name, None)
    fields["notes"] = tuple(fields["notes"])
    return Results(**fields)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned Markdown table; the first column to the left, the others to the right."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    rule = [f":{'-' * (widths[0] - 1)}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    lines = [_line(cells[0], widths), f"|{'|'.join(f' {part} ' for part in rule)}|"]
    return "\n".join(lines + [_line(row, widths) for row in cells[1:]])


def describe(backbone: Backbone, source: Mapping[str, Any]) -> dict[str, Any]:
    """What a results file says of a model: where it came from, its shape, and the hash of its weights."""
    names = ("embed_dim", "depth", "num_heads", "patch_size", "num_register_tokens")
    shape = {name: getattr(backbone, name) for name in names if hasattr(backbone, name)}
    parameters = sum(part.numel() for part in backbone.parameters())
    return {**source, **shape, "parameters": parameters, "sha256": model_hash(backbone)}


def model_hash(backbone: Backbone) -> str:
    """SHA-256 of the names, types, shapes and bytes of a model's weights: the same from whatever file they came.

    Of another library's model also what it is built of: two of open_clip differ in their activations alone.
    """
    whole = hashlib.sha256()
    if isinstance(backbone, Adapter):
        heads = getattr(getattr(getattr(backbone, "tower", None), "config", None), "num_attention_heads", None)
        whole.update(f"{backbone!r} {heads}\n".encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        whole.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        # As bytes, since numpy does not know bfloat16.
        whole.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = row
    return f"| {' | '.join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))])} |"


def number(value: float) -> str:
    """A figure as people read it."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.01 else f"{value:.4g}"
