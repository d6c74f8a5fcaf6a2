# SPDX-License-Identifier: Apache-2.0
"""Stage 5: images of the pool that are like those of chosen query sets.

Two ways, both as published: "sample" takes the k nearest of every query image; "cluster" takes images at random from
the clusters of the pool that hold more than three query images. Read next: `mix.py`.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Int64

from opendino.curate import _kmeans, cluster
from opendino.curate._features import OnDisk, Rows
from opendino.curate._graph import open_features
from opendino.curate._kmeans import KMeansConfig
from opendino.curate.cluster import ClusterConfig
from opendino.curate.index import read_index
from opendino.data.samplers import keyed_rng
from opendino.errors import ConfigError
from opendino.neighbours.approximate import find
from opendino.neighbours.exact import SearchConfig, device_of, of_result
from opendino.stages.engines import Engine, run_stage, run_whole
from opendino.stages.folder import Stage, digest_of, marker, parts_of, write_array, write_table

_QUERIES_A_PART = 16384
_AT_ONCE = 1024


@dataclass(frozen=True)
class RetrieveConfig:
    """What is taken for each query set.

    Attributes:
        method: "auto" takes "sample" for query sets of more than `large` images, else "cluster".
        k: neighbours of each query image.
        repeats: "count" keeps an image that is near several queries once and says how often ("sample" then gives k
            times the number of queries, counted with repeats, as the published figures do); "replace" gives each query
            in turn the nearest k that no earlier query took, of its 8 k nearest.
        clusters: of the pool, for "cluster"; 0 takes one for each thousand images, and 100,000 at most.
        more_than: query images that a cluster has to hold more of.
        each: images drawn from such a cluster.
        cap: images for one query set, at most.
        large: query images, see `method`.
        kmeans: how the pool is clustered.
        seed: of all random draws.

    Source: DINOv2 paper, section 3 and appendix A.4: k 4 or 32; 100,000 clusters, more than 3, 10,000, 1,000,000.
    """

    method: Literal["auto", "sample", "cluster"] = "auto"
    k: int = 4
    repeats: Literal["count", "replace"] = "count"
    clusters: int = 0
    more_than: int = 3
    each: int = 10_000
    cap: int = 1_000_000
    large: int = 1_000_000
    kmeans: KMeansConfig = field(default_factory=KMeansConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1 or self.each < 1 or self.cap < 1 or self.more_than < 0 or self.clusters < 0:
            raise ConfigError("retrieve.k, each and cap: give 1 or more; more_than and clusters: 0 or more")


@dataclass(frozen=True)
class _NeighboursPart:
    """Task: neighbours in the pool of a range of queries."""

    folder: Path
    features: Path
    selection: Path
    queries: Path
    k: int
    search: SearchConfig

    def __call__(self, part: int) -> None:
        pool, queries = (
            open_features((self.features,), self.selection / "kept.npy"),
            open_features((self.queries,), None),
        )
        pool.hold(self.search.hold_mb)
        start, stop = part * _QUERIES_A_PART, min((part + 1) * _QUERIES_A_PART, len(queries))
        found, cosines = [], []
        for first in range(start, stop, _AT_ONCE):
            values, places = find(queries.block(first, min(first + _AT_ONCE, stop)), pool, self.k, self.search)
            found.append(places.numpy())
            cosines.append(values.numpy())
        places = np.concatenate(found)
        write_table(
            marker(self.folder, part),
            pa.table(
                {
                    "query": np.repeat(queries.rows[start:stop], self.k),
                    "position": places.ravel(),
                    "cosine": np.round(np.concatenate(cosines).ravel(), 5),
                }
            ),
        )


def run(
    out: Path,
    selection: Path,
    features: Path,
    queries: tuple[Path, Path],
    config: RetrieveConfig,
    search: SearchConfig,
    engine: Engine,
) -> Path:
    """Retrieve for every query set.

    Args:
        out: folder of the whole curation.
        selection: stage whose `kept.npy` is the pool.
        features: of the pool.
        queries: index and features, by the same model, of the query sets.
        config: what is taken.
        search: how neighbours are found.
        engine: who finds them.

    Returns:
        Folder with `kept.npy`, `times.npy` and `retrieved.parquet` (row, set, times).
    """
    index, asked = queries
    pool = np.load(selection / "kept.npy")
    rows = OnDisk(asked).rows
    sets = np.array(read_index(index, rows, ["set"])["set"].to_pylist())
    ways = {str(name): _way(config, int((sets == name).sum())) for name in np.unique(sets)}
    inputs = {name: digest_of(path) for name, path in
              (("selection", selection), ("features", features), ("queries", asked), ("index", index))}  # fmt: skip
    taken = min(config.k * (8 if config.repeats == "replace" else 1), len(pool))
    near = out / "retrieve_neighbours"
    if "sample" in ways.values():
        stage = Stage(near, "retrieve_neighbours", inputs, {"k": taken, **of_result(search)})
        task = _NeighboursPart(near, features, selection, asked, taken, search)
        run_stage(stage, engine, -(-len(rows) // _QUERIES_A_PART), task, lambda: {"queries": len(rows)})
    folder = out / "retrieve"
    clusters = None
    if "cluster" in ways.values():
        k = min(config.clusters or max(min(len(pool) // 1000, 100_000), 1), len(pool))
        flat = ClusterConfig(levels=(k,), resample=(1,), steps=0, kmeans=config.kmeans, seed=config.seed)
        clusters = cluster.run(out, selection, features, flat, "retrieve_clusters")
    parameters = asdict(config) | {"kmeans": _kmeans.of_result(config.kmeans)}
    stage = Stage(folder, "retrieve", inputs, parameters)

    def take() -> dict[str, Any]:
        held = None if clusters is None else _clusters(clusters, OnDisk(asked), device_of(config.kmeans.device))
        return _take(folder, pool, sets, ways, near, held, config)

    run_whole(stage, take)
    return folder


def _way(config: RetrieveConfig, queries: int) -> str:
    if config.method != "auto":
        return config.method
    return "sample" if queries > config.large else "cluster"


def _clusters(folder: Path, queries: OnDisk, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of each image of the pool and of each query."""
    centroids = torch.from_numpy(np.load(folder / "centroids-1.npy"))
    return np.load(folder / "clusters-1.npy"), _kmeans.assign(queries, centroids, device=device, alone=True).cluster


def _take(
    folder: Path,
    pool: Rows,
    sets: np.ndarray,
    ways: dict[str, str],
    near: Path,
    clusters: tuple[np.ndarray, np.ndarray] | None,
    config: RetrieveConfig,
) -> dict[str, Any]:
    """Positions in the pool for each set, written as rows."""
    found, counts = [], {}
    for number, (name, way) in enumerate(ways.items()):
        mine = sets == name
        if way == "sample" or clusters is None:
            neighbours = np.concatenate([pq.read_table(path)["position"].to_numpy() for path in parts_of(near)])
            taken = by_sample(neighbours.reshape(len(sets), -1)[mine], config.k, config.repeats)
        else:
            rng = keyed_rng(config.seed, "retrieve", number)
            taken = by_cluster(clusters[0], clusters[1][mine], config, rng)
        unique, times = np.unique(taken, return_counts=True)
        if len(unique) > config.cap:
            chosen = np.sort(keyed_rng(config.seed, "cap", number).permutation(len(unique))[: config.cap])
            unique, times = unique[chosen], times[chosen]
        found.append((unique, np.full(len(unique), name), times))
        counts[name] = {"queries": int(mine.sum()), "method": way, "retrieved": len(taken), "kept": len(unique)}
    positions, names, times = (np.concatenate(part) for part in zip(*found, strict=True))
    write_table(folder / "retrieved.parquet", pa.table({"row": pool[positions], "set": names, "times": times}))
    kept, place = np.unique(positions, return_inverse=True)
    write_array(folder / "kept.npy", pool[kept])
    write_array(folder / "times.npy", np.bincount(place, weights=times).astype(np.int64))
    return {"pool": len(pool), "kept": len(kept), "sets": counts}


def by_sample(
    neighbours: Int64[np.ndarray, "q n"], k: int, repeats: Literal["count", "replace"]
) -> Int64[np.ndarray, " m"]:
    """Positions taken for queries, one after the other; k times their number where repeats count.

    Args:
        neighbours: of each query, nearest first, -1 where an approximate engine found none; more than k where repeats
            are replaced.
        k: taken for each query.
        repeats: see `RetrieveConfig`.
    """
    if repeats == "count":
        first = neighbours[:, :k].ravel()
        return first[first >= 0]
    taken: set[int] = set()
    for row in neighbours.tolist():
        left = k
        for position in row:
            if left and position >= 0 and position not in taken:
                taken.add(position)
                left -= 1
    return np.array(sorted(taken), dtype=np.int64)


def by_cluster(
    pool: Int64[np.ndarray, " n"], queries: Int64[np.ndarray, " q"], config: RetrieveConfig, rng: np.random.Generator
) -> Int64[np.ndarray, " m"]:
    """Positions taken from the clusters that hold more than `more_than` of the queries.

    Args:
        pool: cluster of each image of the pool.
        queries: cluster of each query image.
        config: `more_than` and `each`.
        rng: draws the images of a cluster.
    """
    held = np.bincount(queries, minlength=int(pool.max()) + 1)
    chosen = np.flatnonzero(held > config.more_than)
    score = rng.random(len(pool))
    order = np.lexsort([score, pool])
    bounds = np.searchsorted(pool[order], [chosen, chosen + 1])
    parts = [order[low : min(high, low + config.each)] for low, high in bounds.T.tolist()]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
