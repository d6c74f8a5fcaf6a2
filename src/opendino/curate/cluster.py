# SPDX-License-Identifier: Apache-2.0
"""Stage 6a: hierarchical k-means. Clusters of images, clusters of their centroids, and so on, made even by resampling.

Plain k-means puts most centroids where most images are. Clustering again only the few rows nearest to each centroid
flattens that density, so that clusters cover the features more evenly. Read next: `_kmeans.py`, `balance.py`.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from opendino import distributed
from opendino.curate import _kmeans
from opendino.curate._features import OnDisk
from opendino.curate._kmeans import Assignment, KMeansConfig
from opendino.data.samplers import keyed_rng
from opendino.errors import ConfigError, DataError
from opendino.neighbours.exact import device_of
from opendino.neighbours.matrix import InMemory, Matrix
from opendino.stages.folder import Stage, digest_of, write_array


@dataclass(frozen=True)
class ClusterConfig:
    """The tree of clusters.

    Attributes:
        levels: number of clusters of each level, falling; the first level clusters images.
        resample: rows a cluster that resampling clusters again, for each level; 1 or less switches it off. About half
            of a cluster's mean size is usual. Empty takes that.
        steps: times that each level is resampled.
        choose: "closest" rows to each centroid, or "random" ones.
        split: first-level clusters that each of levels[0] / split is cut into; 1 for none.
        kmeans: how each clustering is done.
        seed: of all random draws.

    Source: arXiv 2405.15613, section 3; published 4 levels of 10M, 500k, 50k, 10k with 1, 10, 5, 3 rows.
    """

    levels: tuple[int, ...] = ()
    resample: tuple[int, ...] = ()
    steps: int = 10
    choose: Literal["closest", "random"] = "closest"
    split: int = 1
    kmeans: KMeansConfig = field(default_factory=KMeansConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if any(k < 1 for k in self.levels) or any(a <= b for a, b in zip(self.levels, self.levels[1:], strict=False)):
            raise ConfigError(
                f"cluster.levels = {list(self.levels)}: give numbers of clusters that fall, such as 1000,100"
            )
        if self.resample and len(self.resample) != len(self.levels):
            raise ConfigError(f"cluster.resample = {list(self.resample)}: give one number for each of the levels")
        if self.split < 1 or (self.levels and self.levels[0] % self.split):
            raise ConfigError(f"cluster.split = {self.split}: give a divisor of levels[0]")


def run(out: Path, selection: Path, features: Path, config: ClusterConfig, name: str = "cluster") -> Path:
    """Cluster the selected images; with torchrun every rank calls it and works on its share.

    Returns:
        Folder with `centroids-1.npy`, `clusters-1.npy` and `distances-1.npy` for each level: nearest centroid of each
        row, or of each centroid of the level below, and the square of its distance.

    Raises:
        ConfigError: more clusters than images.
        DataError: no image is left.
    """
    folder = out / name
    data = OnDisk(features, np.load(selection / "kept.npy"))
    if not len(data):
        raise DataError(f"{selection}: no image is left to cluster; loosen what was dropped before")
    settings = resolved(config, len(data))
    inputs = {"features": digest_of(features), "selection": digest_of(selection)}
    parameters = asdict(settings) | {"kmeans": _kmeans.of_result(settings.kmeans)}
    stage = Stage(folder, name, inputs, parameters)
    done = stage.is_done()
    distributed.barrier()
    if done:
        return folder
    with distributed.together():
        if distributed.is_main():
            stage.begin()
    data.hold(config.kmeans.hold_mb)
    rows: Matrix = data
    counts: dict[str, Any] = {"images": len(data), "levels": []}
    for level in range(1, len(settings.levels) + 1):
        centroids, found = _level(folder, level, rows, settings)
        sizes = np.bincount(found.cluster, minlength=len(centroids))
        objective = float(np.mean(found.distance, dtype=np.float64))
        counts["levels"].append(
            {"clusters": len(centroids), "empty": int((sizes == 0).sum()), "largest": int(sizes.max()),
             "mean_squared_distance": round(objective, 6)}
        )  # fmt: skip
        rows = InMemory(centroids)
    with distributed.together():
        if distributed.is_main():
            stage.finish(counts)
    return folder


def resolved(config: ClusterConfig, images: int) -> ClusterConfig:
    """The settings with everything filled in.

    Raises:
        ConfigError: there are more clusters than images.
    """
    levels = config.levels or default_levels(images)
    if levels[0] > images:
        raise ConfigError(f"cluster.levels = {list(levels)}: {levels[0]} clusters of {images} images; give fewer")
    below = (images, *levels)
    resample = config.resample or tuple(max(n // (2 * k), 1) for n, k in zip(below, levels, strict=False))
    return replace(config, levels=levels, resample=resample)


def default_levels(images: int) -> tuple[int, ...]:
    """Two levels, about 20 images a cluster and 5 clusters a cluster of clusters, as in the published small recipe."""
    first = max(images // 20, 1)
    return (first, max(first // 5, 1)) if first > 1 else (first,)


def _level(folder: Path, level: int, rows: Matrix, config: ClusterConfig) -> tuple[Float32[Tensor, "k D"], Assignment]:
    """Clusters of one level; each k-means is a file, so that a killed run does none twice."""
    names = [folder / f"{what}-{level}.npy" for what in ("centroids", "clusters", "distances")]
    k, resample = config.levels[level - 1], config.resample[level - 1]
    device = device_of(config.kmeans.device)
    if not all(path.exists() for path in names):
        centroids = _first(folder, level, rows, k, config, device)
        found = _kmeans.assign(rows, centroids, device=device)
        for step in range(config.steps if resample > 1 else 0):
            path = folder / f".resampled-{level}-{step}.npy"
            if not path.exists():
                seed = _seed(config.seed, level, step + 1)
                chosen = resampled(found, k, resample, config.choose, seed)
                few = InMemory(rows.take(chosen))
                centroids = _kmeans.kmeans(few, min(k, len(few)), config.kmeans, seed=seed, device=device,
                                           note=folder / f".kmeans-{level}-{step}.npy")  # fmt: skip
                _write(path, centroids.numpy())
            centroids = torch.from_numpy(np.load(path))
            found = _kmeans.assign(rows, centroids, device=device)
        for path, array in zip(names, (centroids.numpy(), *found), strict=True):
            _write(path, array)
        if distributed.is_main():
            for note in (*folder.glob(f".*-{level}-*.npy"), *folder.glob(f".first-{level}.npy")):
                note.unlink()
        distributed.barrier()
    centroids, cluster, distance = (np.load(path) for path in names)
    return torch.from_numpy(centroids), Assignment(cluster, distance)


def _first(
    folder: Path, level: int, rows: Matrix, k: int, config: ClusterConfig, device: torch.device
) -> Float32[Tensor, "k D"]:
    path, seed = folder / f".first-{level}.npy", _seed(config.seed, level, 0)
    if not path.exists():
        parts = config.split if level == 1 else 1
        centroids = _kmeans.kmeans(rows, k // parts, config.kmeans, seed=seed, device=device,
                                   note=folder / f".kmeans-{level}-first.npy")  # fmt: skip
        if parts > 1:
            cluster = _kmeans.assign(rows, centroids, device=device).cluster
            centroids = _kmeans.split(rows, cluster, len(centroids), parts, config.kmeans, seed=seed, device=device)
        _write(path, centroids.numpy())
    return torch.from_numpy(np.load(path))


def resampled(
    found: Assignment, k: int, each: int, choose: Literal["closest", "random"], seed: int
) -> Int64[np.ndarray, " m"]:
    """Rows that resampling clusters again, increasing: up to `each` of every cluster.

    Args:
        found: cluster and distance of every row.
        k: clusters.
        each: rows a cluster.
        choose: the closest to the centroid, or random ones; ties go to the smaller row.
        seed: of random ones.
    """
    score = found.distance if choose == "closest" else keyed_rng(seed, "resample", k).random(len(found.cluster))
    order = np.lexsort([np.arange(len(score)), score, found.cluster])
    return np.sort(order[_place_in_group(found.cluster[order]) < each])


def _place_in_group(groups: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Number of each row within its run of equal groups."""
    places = np.arange(len(groups))
    new = np.ones(len(groups), dtype=bool)
    new[1:] = groups[1:] != groups[:-1]
    return places - np.maximum.accumulate(np.where(new, places, 0))


def _write(path: Path, array: np.ndarray) -> None:
    if distributed.is_main():
        write_array(path, array)
    distributed.barrier()


def _seed(seed: int, level: int, step: int) -> int:
    return (seed * 1009 + level) * 1009 + step
