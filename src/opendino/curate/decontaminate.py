# SPDX-License-Identifier: Apache-2.0
"""Stage 4: leaks. Images too near to an evaluation set go, and with them everything they are connected to.

Pool and evaluation images form one graph; a component that holds an evaluation image is dropped whole.
Read next: `retrieve.py` or `cluster.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64

from opendino.curate import _graph
from opendino.curate._features import OnDisk, Rows
from opendino.curate.dedup import check_graph
from opendino.curate.index import read_index
from opendino.neighbours.components import components_of
from opendino.neighbours.exact import SearchConfig, of_result
from opendino.stages.engines import Engine, run_stage, run_whole
from opendino.stages.folder import Stage, digest_of, write_array, write_table

PUBLISHED = 0.45
"""Threshold of the paper, for SSCD."""


@dataclass(frozen=True)
class DecontaminateConfig:
    """What is too near to an evaluation image.

    Attributes:
        threshold: cosine above which two images are joined; None takes what belongs to the copy detector, see
            `pipeline.py`.
        k: neighbours of each image that are looked at.

    Source: DINOv2 paper, appendix A.3: cosine 0.45 of copy-detection features; the whole component is dropped.
    """

    threshold: float | None = None
    k: int = 64

    def __post_init__(self) -> None:
        check_graph("decontaminate", self.threshold, self.k)


def run(
    out: Path,
    selection: Path,
    features: Path,
    references: tuple[Path, Path],
    config: DecontaminateConfig,
    search: SearchConfig,
    engine: Engine,
) -> Path:
    """Drop leaks of evaluation sets.

    Args:
        out: folder of the whole curation.
        selection: stage whose `kept.npy` is looked at.
        features: of the pool, by the copy detector.
        references: index and features, by the same model, of the evaluation sets.
        config: what is too near.
        search: how neighbours are found.
        engine: who finds them.

    Returns:
        Folder with `kept.npy` and `leaks.parquet` (row, set, reference, direct).
    """
    edges, folder = out / "decontaminate_edges", out / "decontaminate"
    pool = np.load(selection / "kept.npy")
    index, other = references
    both = (features, other)
    threshold = PUBLISHED if config.threshold is None else config.threshold
    reference_rows = OnDisk(other).rows
    inputs = {name: digest_of(path) for name, path in
              (("selection", selection), ("features", features), ("references", other))}  # fmt: skip
    stage = Stage(edges, "decontaminate_edges", inputs, {"threshold": threshold, "k": config.k, **of_result(search)})
    task = _graph.EdgesPart(edges, both, selection / "kept.npy", config.k, threshold, search)
    run_stage(stage, engine, _graph.parts_for(len(pool) + len(reference_rows)), task, lambda: _graph.counts(edges))
    stage = Stage(folder, "decontaminate", {"edges": digest_of(edges), "index": digest_of(index)}, {})
    run_whole(stage, lambda: _drop(folder, edges, pool, index, reference_rows))
    return folder


def _drop(folder: Path, edges: Path, pool: Rows, index: Path, references: Rows) -> dict[str, Any]:
    total = len(pool) + len(references)
    labels = components_of(total, ((a, b) for a, b, _ in _graph.edges(edges)))
    leaked, by = leaks(labels, len(pool))
    direct = np.zeros(total, dtype=bool)
    for a, b, _ in _graph.edges(edges):
        direct[a[b >= len(pool)]] = True  # the higher end of an edge is the reference, where one is
    sets = np.array(read_index(index, references, ["set"])["set"].to_pylist())
    table = {
        "row": pool[leaked],
        "set": sets[by[leaked]] if leaked.any() else np.zeros(0, dtype=str),
        "reference": references[by[leaked]],
        "direct": direct[: len(pool)][leaked],
    }
    write_table(folder / "leaks.parquet", pa.table(table))
    write_array(folder / "kept.npy", pool[~leaked])
    touched = {str(name): int((table["set"] == name).sum()) for name in np.unique(sets)}
    return {
        "images": len(pool),
        "kept": int((~leaked).sum()),
        "dropped": int(leaked.sum()),
        "dropped_directly": int(table["direct"].sum()),
        "dropped_for_set": touched,
    }


def leaks(labels: Int64[np.ndarray, " n"], pool: int) -> tuple[Bool[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
    """Which rows of the pool share a component with a reference, and with which: the first of them.

    Args:
        labels: component of each row, those of the pool before those of the references.
        pool: rows of the pool.

    Returns:
        True for a leak, and the number of a reference for each row, -1 without one.
    """
    first = np.full(len(labels), -1, dtype=np.int64)
    of_reference = labels[pool:]
    first[of_reference[::-1]] = np.arange(len(of_reference))[::-1]
    by = first[labels[:pool]]
    return by >= 0, by
