# SPDX-License-Identifier: Apache-2.0
"""Stage 2: features of every usable image, in shards that follow those of the index.

Batches begin anew with every part and the model sees the same batches whoever makes the part, so the bytes do not
depend on the engine. Read next: `_embedders.py` (which models), then `dedup.py`.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from opendino.curate._embedders import THUMBNAIL_VERSION, EmbedConfig, open_embedder
from opendino.curate.index import read_part
from opendino.data.datasets import DecodeOptions
from opendino.data.datasets.pointers import PointerDataset
from opendino.errors import DataError
from opendino.stages.engines import Engine, run_stage
from opendino.stages.folder import Stage, digest_of, marker, parts_of, sha256, write_array, write_table

_FREE = frozenset({"device", "threads"})  # what the features do not depend on


@dataclass(frozen=True)
class EmbedPart:
    """Task: features of one part of an index."""

    folder: Path
    index: Path
    config: EmbedConfig
    image_column: str = ""

    def __call__(self, part: int) -> None:
        """Decode, embed, write."""
        table = read_part(self.index, part)
        embedder = open_embedder(self.config)
        reasons = [""] * len(table)
        found: list[np.ndarray] = []
        if len(table):
            images = PointerDataset.of(table, DecodeOptions(), self.image_column)

            def prepare(row: int) -> Tensor | None:
                try:
                    return embedder.prepare(images.image(row))
                except (DataError, OSError) as error:
                    reasons[row] = f"unreadable: {error}"
                    return None

            size = self.config.batch_size
            batches = [range(start, min(start + size, len(table))) for start in range(0, len(table), size)]
            with ThreadPoolExecutor(self.config.threads) as pool:
                ahead = [pool.submit(prepare, row) for row in batches[0]]
                for number, rows in enumerate(batches):
                    prepared = [future.result() for future in ahead]
                    if number + 1 < len(batches):
                        ahead = [pool.submit(prepare, row) for row in batches[number + 1]]
                    found.append(self._embed(dict(zip(rows, prepared, strict=True)), reasons))
        found = [array for array in found if len(array)]
        _one_width(self.folder, (array.shape[1] for array in found))
        features = np.concatenate(found) if found else np.zeros((0, 0), dtype=self.config.dtype)
        write_array(self.folder / f"part-{part:05d}.npy", features)
        write_table(
            marker(self.folder, part), pa.table({"row": table["row"], "reason": pa.array(reasons, pa.string())})
        )

    def _embed(self, batch: dict[int, Tensor | None], reasons: list[str]) -> np.ndarray:
        """Features of the images of a batch that could be read; others, and useless features, get a reason."""
        rows = [row for row, image in batch.items() if image is not None]
        if not rows:
            return np.zeros((0, 0), dtype=self.config.dtype)
        features = open_embedder(self.config).embed(torch.stack([batch[row] for row in rows]))  # type: ignore[misc]
        lengths = features.norm(dim=1)
        good = torch.isfinite(lengths) & (lengths > 0)
        for row, fine, length in zip(rows, good.tolist(), lengths.tolist(), strict=True):
            if not fine:
                reasons[row] = "features: zero vector" if length == 0 else "features: not finite"
        # The direction is all that is used; unit length keeps float16 within its range.
        return torch.nn.functional.normalize(features[good], dim=1).numpy().astype(self.config.dtype)


def run(out: Path, name: str, index: Path, config: EmbedConfig, engine: Engine, image_column: str = "") -> Path:
    """Embed the usable images of an index.

    Returns:
        Folder of the features.

    Raises:
        ConfigError: the model cannot be opened.
        DataError: no image could be embedded.
    """
    folder = out / name
    parameters = {key: value for key, value in asdict(config).items() if key not in _FREE}
    stage = Stage(folder, name, {"index": digest_of(index), "model": _model_state(config.model)}, parameters)
    task = EmbedPart(folder, index, config, image_column)
    run_stage(stage, engine, len(parts_of(index)), task, lambda: _sum_up(folder))
    return folder


def _model_state(model: str) -> str:
    """Hash of the weights a name stands for, where they are a file or a folder; the version of what has none."""
    if model == "thumbnail":
        return THUMBNAIL_VERSION
    path = Path(model.removeprefix("torchscript:"))
    if path.is_file():
        return sha256(path)
    weights = [*path.glob("*.safetensors"), *path.glob("weights/*.safetensors")] if path.is_dir() else []
    return " ".join(sha256(file) for file in sorted(weights)) or model


def _sum_up(folder: Path) -> dict[str, Any]:
    arrays = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("part-*.npy"))]
    rows = sum(len(array) for array in arrays)
    listed = [
        text for path in parts_of(folder) for text in pq.read_table(path, columns=["reason"])["reason"].to_pylist()
    ]
    lost = [text for text in listed if text]
    if not rows:
        raise DataError(f"{folder}: no image could be embedded ({lost[0] if lost else 'the index has none'})")
    _one_width(folder, (array.shape[1] for array in arrays if len(array)))
    return {"images": rows, "width": max(a.shape[1] for a in arrays), "set_aside": len(lost), "reasons": lost[:20]}


def _one_width(folder: Path, widths: Iterable[int]) -> None:
    if len(found := sorted(set(widths))) > 1:
        raise DataError(
            f"{folder}: the model gives features of {found[0]} numbers for some images and of {found[1]} for others; "
            "take one that gives the same number for every batch"
        )
