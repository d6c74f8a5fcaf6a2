# SPDX-License-Identifier: Apache-2.0
"""A backbone as a folder: `model.safetensors` (official names), `config.json`, and the hash of the weights.

Read next: `hub.py`, which opens such a folder, a run, or a published file.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from opendino import __version__, files
from opendino.checkpoint._architecture import arguments_of, assemble
from opendino.checkpoint._folders import reading, sha256, standing, whole
from opendino.checkpoint._reading import plausible, read
from opendino.errors import CheckpointError
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer

WEIGHTS, CONFIG, HASH = "model.safetensors", "config.json", "model.safetensors.sha256"
FORMAT = 1
"""Raised when a reader of the older layout could misread the newer one."""

KIND = "opendino backbone"
_log = logging.getLogger(__name__)


def save_weights(backbone: VisionTransformer, folder: Path | str, extra: Mapping[str, Any] | None = None) -> Path:
    """Write a backbone; a folder of that name is replaced, as a whole, when the new one is on the disk.

    Args:
        backbone: in any mode and on any device; stored in float32.
        folder: its parents are made.
        extra: plain values about where the weights come from (step, data, recipe), for people and results.

    Returns:
        The folder.

    Raises:
        CheckpointError: it cannot be written, for example for want of space; nothing half-written is left.
    """
    folder = Path(folder)
    # Copies: safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().float().cpu().clone().contiguous() for name, tensor in backbone.state_dict().items()
    }
    config = {
        "kind": KIND,
        "format": FORMAT,
        "backbone": arguments_of(backbone),
        "input_spec": asdict(backbone.input_spec),
        "provenance": {"opendino": __version__, **(extra or {})},
    }
    try:
        with whole(folder) as partial:
            files.save_tensors(tensors, partial / WEIGHTS, metadata={"format": "pt"})
            (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            # The layout of sha256sum, so that `sha256sum -c` checks it too.
            (partial / HASH).write_text(f"{sha256(partial / WEIGHTS)}  {WEIGHTS}\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder}: the weights could not be written ({cause}); make room, or give another folder"
        ) from error
    return folder


def load_weights(folder: Path | str) -> VisionTransformer:
    """Open a folder that `save_weights` wrote, in float32 and evaluation mode; a run may replace it meanwhile.

    Raises:
        CheckpointError: a file is missing, altered, of another kind, or of a layout this version does not know.
        ConversionError: the weights do not fit the configuration.
    """
    folder = Path(folder)
    return reading(lambda: _read(standing(folder)), folder)


def _read(folder: Path) -> VisionTransformer:
    config = read_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder}: {WEIGHTS} is missing beside {CONFIG}; the folder was not copied as a whole")
    _check_hash(folder)
    with plausible(folder / CONFIG):
        arguments, spec = dict(config["backbone"]), config["input_spec"]
        if isinstance(arguments["img_size"], list):
            arguments["img_size"] = tuple(arguments["img_size"])
        expected = InputSpec(*(_numbers(spec[name]) for name in ("size", "channels", "mean", "std")))
    backbone = assemble(str(path), arguments, read(path))
    backbone.input_spec = expected
    return backbone


def _numbers(value: Any) -> Any:  # noqa: ANN401  a number or a list of them
    """A number, or a tuple of numbers, as it stands in a file."""
    found = tuple(value) if isinstance(value, list) else value
    if not all(type(number) in (int, float) for number in (found if isinstance(found, tuple) else (found,))):
        raise TypeError(f"{value!r} where numbers are wanted")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a weights folder: architecture, input and provenance.

    Raises:
        CheckpointError: it is missing, is not JSON, or describes something else.
    """
    path = folder / CONFIG
    try:
        config = files.read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no {CONFIG}; a weights folder holds {WEIGHTS}, {CONFIG} and {HASH}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); copy or write the folder again") from None
    if not isinstance(config, dict) or config.get("kind") != KIND:
        kind = config.get("model_type", "something else") if isinstance(config, dict) else "something else"
        raise CheckpointError(
            f"{path}: describes {kind}, not an opendino backbone; give a folder that opendino wrote, or a .pth or "
            ".safetensors file with official names"
        )
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is of layout {config.get('format')}, this version reads {FORMAT}; use the version that wrote it"
        )
    return config


def _check_hash(folder: Path) -> None:
    path = folder / HASH
    if not path.is_file():
        _log.warning("%s: no %s, so the weights are taken unchecked", folder, HASH)
        return
    wanted = path.read_text(encoding="utf-8", errors="replace").partition(" ")[0].strip()
    found = sha256(folder / WEIGHTS)
    if wanted != found:
        raise CheckpointError(
            f"{folder / WEIGHTS}: its hash is {found[:12]}..., {HASH} says {wanted[:12]}...; "
            "the file was altered or copied in part, copy or write it again"
        )
