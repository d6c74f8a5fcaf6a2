# SPDX-License-Identifier: Apache-2.0
"""Stage 3: near copies. A graph of copies, its connected components, and one image kept of each.

Read next: `_graph.py` (how edges are found), `neighbours/components.py`, then `decontaminate.py`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float64, Int64

from opendino.curate import _graph
from opendino.curate._features import OnDisk, Rows
from opendino.curate.index import read_index
from opendino.errors import ConfigError
from opendino.neighbours.components import components_of
from opendino.neighbours.exact import SearchConfig, of_result
from opendino.neighbours.matrix import Matrix
from opendino.stages.engines import Engine, run_stage, run_whole
from opendino.stages.folder import Stage, counts_of, digest_of, write_array, write_table

PUBLISHED = 0.6
"""Threshold of the paper, for SSCD."""

DOUBTFUL = 0.02
"""Share of the images taken for copies above which somebody should look whether they are."""

Keep = Literal["largest", "first", "central"]

_RULE = 2  # another where another image of equal ones stays, so that old choices are made again
_ROWS_AT_ONCE = 16384

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DedupConfig:
    """What is a copy, and which one stays.

    Attributes:
        threshold: cosine above which two images are copies; None takes what belongs to the copy detector, see
            `pipeline.py`.
        k: neighbours of each image that are looked at; larger groups still connect through chains.
        keep: "largest" in pixels, "first" in the index, or "central": the largest sum of cosines to all others of its
            component. Of equal ones stays what holds more picture: more pixels, colour before grey, more bytes; at
            last the first in the index.

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
    inputs = {"edges": digest_of(edges), "index": digest_of(index)}
    stage = Stage(folder, "dedup", inputs, {"keep": config.keep, "rule": _RULE, "threshold": threshold})
    done = run_whole(stage, lambda: _choose(folder, edges, index, matrix, config))
    if doubt := doubtful(counts_of(folder), threshold):
        _log.warning("%s", doubt)
    return folder, done


def doubtful(counts: Mapping[str, Any], threshold: float) -> str:
    """What is to be said where so many images went as copies that some may be none; nothing otherwise.

    Args:
        counts: of the stage.
        threshold: it was run with.
    """
    share = counts["dropped"] / max(counts["images"], 1)
    if share <= DOUBTFUL:
        return ""
    return (
        f"{counts['dropped']} of {counts['images']} images ({100 * share:.1f} %) went as near copies, the largest "
        f"group has {counts['largest_component']}. Right where the source has so many; a detector that is weak on such "
        f"pictures joins strangers too. Look at the groups in report.html: if they are strangers, raise "
        f"dedup.threshold ({threshold:g} now) or take another copy.model"
    )


def _choose(folder: Path, edges: Path, index: Path, matrix: OnDisk, config: DedupConfig) -> dict[str, Any]:
    rows = matrix.rows
    labels = components_of(len(rows), ((a, b) for a, b, _ in _graph.edges(edges)))
    scores = [] if config.keep == "first" else _content(index, rows)
    if config.keep == "central":
        scores.insert(0, centrality(labels, matrix))
    kept = choose(labels, *scores)
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
        "dropped_share": round(float((~kept).mean()), 4),
        "components_with_copies": int((sizes > 1).sum()),
        "largest_component": int(sizes.max()),
        "rows_with_all_k": full,
    }


def _content(index: Path, rows: Rows) -> list[Float64[np.ndarray, " n"]]:
    """How much picture each row holds, what counts most first."""
    table = read_index(index, rows, ["width", "height", "channels", "bytes"])
    width, height, channels, size = (table[name].to_numpy().astype(np.float64) for name in table.column_names[1:])
    return [width * height, channels, size]


def choose(labels: Int64[np.ndarray, " n"], *scores: Float64[np.ndarray, " n"]) -> np.ndarray:
    """True for the one of each component with the highest score, the first of equals.

    Args:
        labels: component of each row.
        scores: of each row; each of them decides where those before it are equal.
    """
    order = np.lexsort([np.arange(len(labels)), *(-score for score in reversed(scores)), labels])
    first = np.ones(len(labels), dtype=bool)
    first[1:] = labels[order][1:] != labels[order][:-1]
    kept = np.zeros(len(labels), dtype=bool)
    kept[order[first]] = True
    return kept


def centrality(
    labels: Int64[np.ndarray, " n"], features: Matrix, at_once: int = _ROWS_AT_ONCE
) -> Float64[np.ndarray, " n"]:
    """Sum of the cosines of each row to all others of its component, whether or not they have an edge.

    It is the product with the sum of the others, so a component of a million rows takes a million products.

    Args:
        labels: component of each row.
        features: the rows, of length 1.
        at_once: rows read at once, in whole components where they are no larger; bounds the memory.
    """
    order = np.argsort(labels, kind="stable")
    order = order[np.bincount(labels, minlength=len(labels))[labels[order]] > 1]
    _, starts = np.unique(labels[order], return_index=True)
    total, ends = np.zeros(len(labels)), [*starts[1:].tolist(), len(order)] if len(order) else []
    begin = 0
    for place, end in enumerate(ends):
        # As many whole components as fit, or a single larger one.
        if place + 1 < len(ends) and ends[place + 1] - begin <= at_once:
            continue
        group = order[begin:end]
        _, component = np.unique(labels[group], return_inverse=True)
        parts = [slice(start, start + at_once) for start in range(0, len(group), at_once)]
        sums = torch.zeros(int(component.max()) + 1, features.dim, dtype=torch.float64)
        for part in parts:
            sums.index_add_(0, torch.from_numpy(component[part]), features.take(group[part]).double())
        for part in parts:
            own = features.take(group[part]).double()
            others = sums[torch.from_numpy(component[part])] - own
            total[group[part]] = (own * others).sum(dim=1).numpy()
        begin = end
    # Rounded, so that the order of the sum does not decide between equals.
    return np.round(total, 6)
