# SPDX-License-Identifier: Apache-2.0
"""The graph of near neighbours above a threshold, in shards of edges; shared by `dedup.py` and `decontaminate.py`.

Each part asks for the neighbours of one range of rows among all rows. A pair is compared again in float32 before the
threshold decides, so neither blocks nor the number of processes change the edges.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float32, Int64

from opendino.curate._features import OnDisk
from opendino.errors import DataError
from opendino.neighbours.approximate import find
from opendino.neighbours.exact import SearchConfig, pairs
from opendino.stages.folder import marker, parts_of, write_table

ROWS_A_PART = 16384
_AT_ONCE = 1024  # queries


@dataclass(frozen=True)
class EdgesPart:
    """Task: edges of one range of rows.

    Attributes:
        folder: of the stage.
        features: folders whose rows stand one after the other; positions in that matrix are the nodes.
        selection: `.npy` of the rows of the first folder that take part; None takes all.
        k: neighbours of each row, itself not counted.
        threshold: cosine above which two rows are joined.
        search: how neighbours are found.
        rows: in a part.
    """

    folder: Path
    features: tuple[Path, ...]
    selection: Path | None
    k: int
    threshold: float
    search: SearchConfig
    rows: int = ROWS_A_PART

    def __call__(self, part: int) -> None:
        """Find and write the edges of rows part * rows and on."""
        matrix = open_features(self.features, self.selection)
        matrix.hold(self.search.hold_mb)
        k = min(self.k + 1, len(matrix))
        start, stop = part * self.rows, min((part + 1) * self.rows, len(matrix))
        columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        full = 0
        for first in range(start, stop, _AT_ONCE):
            queries = matrix.block(first, min(first + _AT_ONCE, stop))
            values, found = find(queries, matrix, k, self.search, floor=self.threshold)
            full += int((values[:, -1] > self.threshold).sum())
            # Sums in another order are off by less than this; the pairs below decide, alike from both ends.
            near = values > self.threshold - 1e-3
            own, place = near.nonzero(as_tuple=True)
            other = found[own, place]
            keep = other != own + first
            own, other = own[keep], other[keep]
            cosines = pairs(queries, matrix, own, other)
            above = cosines > self.threshold
            nodes = torch.stack([own + first, other])[:, above]
            low, high = nodes.min(dim=0).values, nodes.max(dim=0).values
            columns.append((low.numpy(), high.numpy(), cosines[above].numpy()))
        _write(marker(self.folder, part), columns, full)


def parts_for(rows: int, size: int = ROWS_A_PART) -> int:
    """Number of parts of a graph."""
    return -(-rows // size)


def open_features(folders: tuple[Path, ...], selection: Path | None) -> OnDisk:
    """The matrix that positions of a graph belong to.

    Args:
        folders: of finished embedding stages.
        selection: `.npy` of the rows of the first folder that take part; None takes all.
    """
    state = tuple(path.stat().st_mtime_ns for path in (*folders, *((selection,) if selection else ())))
    return _opened(folders, selection, state)


@lru_cache(maxsize=2)
def _opened(folders: tuple[Path, ...], selection: Path | None, state: tuple[int, ...]) -> OnDisk:
    """Once for all parts; `state` tells folders that were made again."""
    del state
    rows = None if selection is None else np.load(selection)
    if rows is not None and len(folders) > 1:
        return Stacked(OnDisk(folders[0], rows), OnDisk(folders[1:]))
    return OnDisk(folders, rows)


class Stacked(OnDisk):
    """Two matrices, one below the other."""

    def __init__(self, upper: OnDisk, lower: OnDisk) -> None:
        self.upper, self.lower, self.dim = upper, lower, upper.dim
        if upper.dim != lower.dim:
            raise DataError(f"features of {upper.dim} and of {lower.dim} numbers; one model has to make all of them")
        self.rows = np.concatenate([upper.rows, lower.rows])

    def _read(self, positions: Int64[np.ndarray, " m"]) -> Float32[torch.Tensor, "m D"]:
        out = torch.empty(len(positions), self.dim)
        above = positions < len(self.upper)
        out[torch.from_numpy(above)] = self.upper.take(positions[above])
        out[torch.from_numpy(~above)] = self.lower.take(positions[~above] - len(self.upper))
        return out


def edges(folder: Path) -> Iterator[tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"], Float32[np.ndarray, " m"]]]:
    """Lower node, higher node and cosine of the edges of each finished part."""
    for path in parts_of(folder):
        table = pq.read_table(path)
        yield table["a"].to_numpy(), table["b"].to_numpy(), table["cosine"].to_numpy()


def counts(folder: Path) -> dict[str, int]:
    """Edges, and rows all of whose neighbours lie above the threshold: for them k may have been too small."""
    found = [pq.read_schema(path).metadata[b"opendino.full"] for path in parts_of(folder)]
    return {"edges": sum(len(a) for a, _, _ in edges(folder)), "rows_with_all_k": sum(map(int, found))}


def _write(path: Path, columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]], full: int) -> None:
    low, high, cosine = (np.concatenate(part) for part in zip(*columns, strict=True))
    # Both ends of a pair may have found it; inside a part it is written once.
    order = np.lexsort([high, low])
    low, high, cosine = low[order], high[order], cosine[order]
    first = np.ones(len(low), dtype=bool)
    first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    table = pa.table({"a": low[first], "b": high[first], "cosine": cosine[first].astype(np.float32)})
    write_table(path, table.replace_schema_metadata({"opendino.full": str(full)}))
