# SPDX-License-Identifier: Apache-2.0
"""Features on the disk as one matrix of unit rows, read block by block; what search and clustering work on.

A shard is `part-00007.npy`, float32 or float16 [rows, D], and `part-00007.parquet` with the number of each row's image
in the index. Nothing is read before it is needed, and never more than a block.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor

from opendino.errors import DataError
from opendino.neighbours.matrix import Held

_READ = 65536  # rows

Rows = Int64[np.ndarray, " _"]
"""Numbers of images in the index, increasing."""


class OnDisk(Held):
    """Shards of features, each row divided by its length when it is read.

    Args:
        folders: of finished embedding stages; their rows stand one after the other.
        rows: numbers of the images wanted, increasing; None takes all. Only for a single folder.

    Raises:
        DataError: there is nothing, widths differ, or a row asked for has no features.
    """

    largest = 1.0

    def __init__(self, folders: Path | Sequence[Path], rows: Rows | None = None) -> None:
        folders = [folders] if isinstance(folders, Path) else list(folders)
        self._shards, found = [], []
        for folder in folders:
            for path in sorted(folder.glob("part-*.npy")):
                array = np.load(path, mmap_mode="r")
                if len(array):
                    self._shards.append((path, array))
                    found.append(_rows_of(path, len(array)))
        if not self._shards:
            raise DataError(f"{' and '.join(map(str, folders))}: no features are there; run the stage embed first")
        self.dim = _one_width(self._shards)
        self._starts = np.cumsum([0, *(len(array) for _, array in self._shards)], dtype=np.int64)
        self.rows: Rows = np.concatenate(found)
        self._places: Int64[np.ndarray, " n"] | None = None
        if rows is not None:
            self._places = np.searchsorted(self.rows, rows)
            there = self.rows[np.minimum(self._places, len(self.rows) - 1)] == rows
            if not there.all():
                raise DataError(
                    f"{folders[0]}: image {rows[~there][0]} of the index has no features; run the stage embed again"
                )
            self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def block(self, start: int, stop: int) -> Float32[Tensor, "m D"]:
        """Rows from start to stop, of length 1.

        Raises:
            DataError: a row is not finite or zero.
        """
        if self._held is not None:
            return self._held[start:stop]
        return self.take(np.arange(start, min(stop, len(self)), dtype=np.int64))

    def hold(self, megabytes: int) -> None:
        """Keep all rows in memory, ready for use, where they need no more than so much."""
        if self._held is None and len(self) * self.dim * 4 <= megabytes << 20:
            held = torch.empty(len(self), self.dim)
            for start in range(0, len(self), _READ):
                held[start : start + _READ] = self.block(start, start + _READ)
            self._held = held

    def take(self, positions: Int64[np.ndarray, " m"]) -> Float32[Tensor, "m D"]:
        """Some rows, of length 1.

        Raises:
            DataError: a row is not finite or zero.
        """
        if self._held is not None:
            return self._held.index_select(0, torch.from_numpy(positions))
        return self._read(positions)

    def _read(self, positions: Int64[np.ndarray, " m"]) -> Float32[Tensor, "m D"]:
        places = positions if self._places is None else self._places[positions]
        out = np.empty((len(places), self.dim), dtype=np.float32)
        shard_of = np.searchsorted(self._starts, places, side="right") - 1
        for shard in np.unique(shard_of):
            mine = shard_of == shard
            out[mine] = self._shards[shard][1][places[mine] - self._starts[shard]]
        features = torch.from_numpy(out)
        lengths = features.norm(dim=1)
        wrong = ~(torch.isfinite(lengths) & (lengths > 0))
        if wrong.any():
            at = int(wrong.nonzero()[0])
            path = self._shards[shard_of[at]][0]
            what = "is a zero vector" if lengths[at] == 0 else "is not finite"
            raise DataError(
                f"{path}: row {places[at] - self._starts[shard_of[at]]} {what}, so it has no direction; leave that "
                "image out or embed it again"
            )
        return F.normalize(features, dim=1)


def _rows_of(path: Path, n: int) -> Rows:
    table = pq.read_table(path.with_suffix(".parquet"), columns=["row", "reason"])
    rows = table["row"].to_numpy()[[not reason for reason in table["reason"].to_pylist()]]
    if len(rows) != n:
        raise DataError(f"{path}: {n} rows of features for {len(rows)} images; run the stage embed again")
    return rows.astype(np.int64)


def _one_width(shards: Sequence[tuple[Path, np.ndarray]]) -> int:
    first = shards[0]
    for path, array in shards:
        if array.ndim != 2 or array.shape[1] != first[1].shape[-1]:
            raise DataError(
                f"{path}: features of shape {array.shape}, where {first[0]} has {first[1].shape}; one model has to "
                "make all of them"
            )
    return int(first[1].shape[1])
