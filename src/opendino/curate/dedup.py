# SPDX-License-Identifier: Apache-2.0
"""Stage 3: near copies. A graph of copies, its connected components, and one image kept of each.

Read next: `_graph.py` (how edges are found), `neighbours/components.py`, then `decontaminate.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64

from opendino.curate import _graph
from opendino.curate._features import OnDisk, Rows
from opendino.curate.index import read_index
from opendino.errors import ConfigError
from opendino.neighbours.components import components_of
from opendino.neighbours.exact import SearchConfig, of_result
from opendino.stages.engines import Engine, run_stage, run_whole
from opendino.stages.folder import Stage, digest_of, write_array, write_table

PUBLISHED = 0.6
"""Threshold of the paper, for SSCD."""

Keep = Literal["largest", "first", "central"]


@dataclass(frozen=True)
class DedupConfig:
    """What is a copy, and which one stays.

    Attributes:
        threshold: cosine above which two images are copies; None takes what belongs to the copy detector, see
            `pipeline.py`.
        k: neighbours of each image that are looked at; larger groups still connect through chains.
        keep: "largest" in pixels, "first" in the index, or "central": the largest sum of cosines to its copies. Ties
            go to the first in the index.

    Source: DINOv2 paper, appendix A.3: cosine 0.6 of copy-detection features, 64 neighbours, one kept a component.
    Differs: the paper does not say which one it keeps.
    """

    threshold: float | None = None
    k: int = 64
    keep: Keep = "largest"

    def __post_init__(self) -> None:
        check_graph("dedup", self.threshold, self.k)


def check_graph(group: str, threshold: float | None, k: int) -> None:
    """Check the settings of a graph.

    Raises:
        ConfigError: the threshold is no cosine, or there are no neighbours.
    """
    if threshold is not None and not -1 < threshold < 1:
        raise ConfigError(f"{group}.threshold = {threshold}: is a cosine; give a number between -1 and 1")
    if k < 1:
        raise ConfigError(f"{group}.k = {k}: give 1 or more neighbours")


def run(
    out: Path, index: Path, features: Path, config: DedupConfig, search: SearchConfig, engine: Engine
) -> tuple[Path, bool]:
    """Find copies and choose what stays.

    Returns:
        Folder with `kept.npy` and `copies.parquet` (row, component, kept), and whether anything had to be done.
    """
    edges = out / "dedup_edges"
    matrix = OnDisk(features)
    threshold = PUBLISHED if config.threshold is None else config.threshold
    parameters = {"threshold": threshold, "k": config.k, **of_result(search)}
    stage = Stage(edges, "dedup_edges", {"features": digest_of(features)}, parameters)
    task = _graph.EdgesPart(edges, (features,), None, config.k, threshold, search)
    run_stage(stage, engine, _graph.parts_for(len(matrix)), task, lambda: _graph.counts(edges))
    folder = out / "dedup"
    stage = Stage(folder, "dedup", {"edges": digest_of(edges), "index": digest_of(index)}, {"keep": config.keep})
    done = run_whole(stage, lambda: _choose(folder, edges, index, matrix.rows, config))
    return folder, done


def _choose(folder: Path, edges: Path, index: Path, rows: Rows, config: DedupConfig) -> dict[str, Any]:
    labels = components_of(len(rows), ((a, b) for a, b, _ in _graph.edges(edges)))
    if config.keep == "largest":
        table = read_index(index, rows, ["width", "height"])
        score = table["width"].to_numpy().astype(np.float64) * table["height"].to_numpy()
    elif config.keep == "central":
        score = centrality(len(rows), _graph.edges(edges))
    else:
        score = np.zeros(len(rows))
    kept = choose(labels, score)
    sizes = np.bincount(labels, minlength=len(rows))
    grouped = sizes[labels] > 1
    columns = {"row": rows[grouped], "component": rows[labels[grouped]], "kept": kept[grouped]}
    order = np.lexsort([columns["row"], columns["component"]])
    write_table(folder / "copies.parquet", pa.table({name: column[order] for name, column in columns.items()}))
    write_array(folder / "kept.npy", rows[kept])
    full = sum(int(pq.read_schema(p).metadata[b"opendino.full"]) for p in sorted(edges.glob("part-*.parquet")))
    return {
        "images": len(rows),
        "kept": int(kept.sum()),
        "dropped": int((~kept).sum()),
        "components_with_copies": int((sizes > 1).sum()),
        "largest_component": int(sizes.max()),
        "rows_with_all_k": full,
    }


def choose(labels: Int64[np.ndarray, " n"], score: Float64[np.ndarray, " n"]) -> np.ndarray:
    """True for the one of each component with the highest score, the first of equals.

    Args:
        labels: component of each row.
        score: of each row.
    """
    order = np.lexsort([np.arange(len(labels)), -score, labels])
    first = np.ones(len(labels), dtype=bool)
    first[1:] = labels[order][1:] != labels[order][:-1]
    kept = np.zeros(len(labels), dtype=bool)
    kept[order[first]] = True
    return kept


def centrality(
    n: int, edges: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], rows: int = _graph.ROWS_A_PART
) -> Float64[np.ndarray, " n"]:
    """Sum of the cosines of each node's edges, one part of the graph after the other.

    Both ends of an edge may have found it, in two parts: a node counts what its own part has.

    Args:
        n: nodes.
        edges: of each part: both ends and cosine.
        rows: nodes of a part.
    """
    total = np.zeros(n)
    for part, (a, b, cosine) in enumerate(edges):
        for end in (a, b):
            own = end // rows == part
            total += np.bincount(end[own], cosine[own], minlength=n)
    # Rounded, so that the order of the sum does not decide between equals.
    return np.round(total, 6)
