# SPDX-License-Identifier: Apache-2.0
"""k-means over blocks of rows, on one process or many, on CPU or GPU, with the same centroids to the last bit.

Sums are float64 of rows rounded to multiples of a power of two, so coarse that every partial sum is exact: the
order of the sum, and with it the number of processes, does not matter. Read next: `cluster.py`.
"""

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from opendino import distributed
from opendino.data.samplers import keyed_rng
from opendino.errors import ConfigError
from opendino.neighbours.exact import Precision, fast_dtype
from opendino.neighbours.matrix import InMemory, Matrix
from opendino.precision import full_float32
from opendino.stages.folder import write_array

_log = logging.getLogger(__name__)
BLOCK = 8192  # rows; part of the result, as products of other shapes may round otherwise
_SCORES = 128 << 20  # bytes of one block's distances
_EXACT = 53  # bits of a float64


@dataclass(frozen=True)
class KMeansConfig:
    """How clusters are found.

    Attributes:
        iterations: Lloyd steps at most; fewer where nothing changes any more.
        init: "kmeans++" takes the best of 2 + ln k candidates each time, "random" takes rows.
        init_rows: rows a cluster that k-means++ looks at; 0 for all.
        precision: of the distances, but for the last two steps, which are float32; "auto" is bf16 where the device is
            fast at it.
        device: "auto" takes a CUDA device where there is one.
        hold_mb: of features that a process keeps in memory, in float32; larger sets are read again for each step.
        save_every: iterations between two notes that a killed run continues from.
    """

    iterations: int = 50
    init: Literal["kmeans++", "random"] = "kmeans++"
    init_rows: int = 6
    precision: Precision = "auto"
    device: str = "auto"
    hold_mb: int = 4096
    save_every: int = 10

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.save_every < 1 or self.init_rows < 0:
            raise ConfigError("cluster.iterations and save_every: give 1 or more; init_rows: 0 or more")


def of_result(config: KMeansConfig) -> dict[str, Any]:
    """Settings that the centroids depend on."""
    return {name: value for name, value in asdict(config).items() if name not in ("device", "hold_mb", "save_every")}


class Assignment(NamedTuple):
    """Nearest centroid of each row, and the square of its distance."""

    cluster: Int64[np.ndarray, " n"]
    distance: Float32[np.ndarray, " n"]


def kmeans(
    data: Matrix,
    k: int,
    config: KMeansConfig,
    *,
    seed: int,
    device: torch.device,
    note: Path | None = None,
    alone: bool = False,
) -> Float32[Tensor, "k D"]:
    """Centroids of k clusters by Lloyd's steps; a cluster that loses all its rows keeps its place.

    With a process group each process works on its share of the blocks, and every process has to call it.

    Args:
        data: rows; every process reads the same.
        k: clusters, at most as many as rows.
        config: how.
        seed: of the initial rows.
        device: that computes.
        note: `.npy` of the iteration reached and its centroids; removed by who reads the result.
        alone: do not ask other processes.

    Raises:
        ConfigError: k is out of range.

    Source: Lloyd 1982; Arthur and Vassilvitskii 2007 (k-means++, greedy); arXiv 2405.15613 for 50 steps and float64.
    """
    if not 1 <= k <= len(data):
        raise ConfigError(f"k = {k} clusters of {len(data)} rows; give 1 to {len(data)}")
    step, in_full, centroids = _continued(note, k, data.dim)
    if centroids is None:
        centroids = _shared(initial(data, k, config, seed, device), alone)
    scale = exact_scale(len(data), data.largest)
    dtype = torch.float32 if in_full else fast_dtype(config.precision, device)
    with full_float32():
        while step < config.iterations:
            last = step + 1 >= config.iterations - 1  # the last two steps
            moved = _lloyd(data, centroids, scale, torch.float32 if last else dtype, device, alone)
            still = torch.equal(moved, centroids)
            centroids, step = moved, step + 1
            if still:
                if dtype == torch.float32 or last:
                    break
                dtype = torch.float32  # at rest in half precision; the rest is done in full
            if note is not None and step % config.save_every == 0 and distributed.is_main():
                head = np.zeros((1, data.dim), np.float32)
                head[0, 0], head[0, -1] = step, (dtype == torch.float32) if data.dim > 1 else step
                write_array(note, np.concatenate([head, centroids.numpy()]))
    return centroids


def assign(data: Matrix, centroids: Float32[Tensor, "k D"], *, device: torch.device, alone: bool = False) -> Assignment:
    """Nearest centroid of every row in float32, ties to the smaller number; all processes get all rows."""
    cluster, distance = np.zeros(len(data), dtype=np.int64), np.zeros(len(data), dtype=np.float32)
    with full_float32():
        for start, stop in _blocks(len(data), alone):
            rows = data.block(start, stop).to(device)
            part, likeness = _nearest(rows, centroids.to(device), torch.float32)
            squared = (rows.square().sum(dim=1) - 2 * likeness).clamp(min=0)
            cluster[start:stop], distance[start:stop] = part.cpu().numpy(), squared.cpu().numpy()
    if alone or distributed.world_size() == 1:
        return Assignment(cluster, distance)
    gathered = [
        distributed.all_reduce_sum(torch.from_numpy(part).to(device)).cpu().numpy() for part in (cluster, distance)
    ]
    return Assignment(*gathered)


def exact_scale(rows: int, largest: float = 1.0) -> float:
    """Power of two whose multiples are added without rounding, for so many rows of numbers up to `largest`."""
    return 2.0 ** (_EXACT - 1 - math.ceil(math.log2(max(rows, 2))) - math.ceil(math.log2(max(largest, 1e-30))))


def _lloyd(
    data: Matrix, centroids: Float32[Tensor, "k D"], scale: float, dtype: torch.dtype, device: torch.device, alone: bool
) -> Float32[Tensor, "k D"]:
    """One step: means of the rows nearest to each centroid."""
    here = centroids.to(device)
    # The last column counts.
    sums = torch.zeros(len(here), data.dim + 1, dtype=torch.float64, device=device)
    for start, stop in _blocks(len(data), alone):
        rows = data.block(start, stop).to(device)
        cluster, _ = _nearest(rows, here, dtype)
        # Whole numbers, and divided after the sum: by a power of two, so that nothing is rounded again.
        sums[:, :-1].index_add_(0, cluster, rows.double().mul_(scale).round_())
        sums[:, -1].index_add_(0, cluster, torch.ones(len(rows), dtype=torch.float64, device=device))
    if not alone:
        sums = distributed.all_reduce_sum(sums)
    count = sums[:, -1:].cpu()
    means = (sums[:, :-1].cpu() / scale / count.clamp(min=1)).float()
    return torch.where(count > 0, means, centroids)


def _nearest(
    rows: Float32[Tensor, "n D"], centroids: Float32[Tensor, "k D"], dtype: torch.dtype
) -> tuple[Int64[Tensor, " n"], Float32[Tensor, " n"]]:
    """Nearest centroid, and product with it less half its square, in blocks of centroids that bound the memory."""
    half = 0.5 * centroids.square().sum(dim=1)
    step = max(_SCORES // (4 * len(rows)), 1024)
    best = torch.full((len(rows),), -math.inf, device=rows.device)
    cluster = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for start in range(0, len(centroids), step):
        part = centroids[start : start + step]
        if dtype == torch.float32:
            scores = torch.addmm(half[start : start + step], rows, part.T, beta=-1)
        else:
            scores = (rows.to(dtype) @ part.to(dtype).T).float().sub_(half[start : start + step])
        value, where = scores.max(dim=1)
        better = value > best
        best, cluster = torch.where(better, value, best), torch.where(better, where + start, cluster)
    return cluster, best


def initial(data: Matrix, k: int, config: KMeansConfig, seed: int, device: torch.device) -> Float32[Tensor, "k D"]:
    """First centroids: different rows, drawn with the seed."""
    rng = keyed_rng(seed, "kmeans", k)
    if config.init == "random":
        return data.take(np.sort(rng.choice(len(data), k, replace=False)))
    wanted = min(len(data), k * config.init_rows) if config.init_rows else len(data)
    sample = np.sort(rng.choice(len(data), wanted, replace=False)) if wanted < len(data) else np.arange(len(data))
    rows = data.take(sample)
    return rows[plus_plus(rows.to(device), k, rng)]


def plus_plus(rows: Float[Tensor, "n D"], k: int, rng: np.random.Generator) -> Int64[Tensor, " k"]:
    """Rows far from each other: each next one drawn by its squared distance, the best of 2 + ln k draws."""
    draws = 2 + int(math.log(k))
    squares = rows.square().sum(dim=1)
    chosen = np.zeros(k, dtype=np.int64)
    chosen[0] = rng.integers(len(rows))
    closest = (squares + squares[chosen[0]] - 2 * rows @ rows[chosen[0]]).clamp_(min=0)
    taken = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    taken[chosen[0]] = True
    for place in range(1, k):
        closest[taken] = 0
        edges: Float64[Tensor, " n"] = closest.double().cumsum(dim=0)
        if float(edges[-1]) <= 0:  # only copies of the chosen are left
            chosen[place:] = (~taken).nonzero().flatten()[: k - place].cpu().numpy()
            break
        marks = torch.from_numpy(rng.random(draws)).to(edges.device) * edges[-1]
        tries = torch.searchsorted(edges, marks, right=True).clamp_(max=len(rows) - 1)
        distance = squares[:, None] + squares[tries][None] - 2 * rows @ rows[tries].T
        left = torch.minimum(distance, closest[:, None]).clamp_(min=0)
        best = int(left.double().sum(dim=0).argmin())
        chosen[place], closest = int(tries[best]), left[:, best].contiguous()
        taken[tries[best]] = True
    return torch.from_numpy(chosen)


def split(
    data: Matrix,
    cluster: Int64[np.ndarray, " n"],
    clusters: int,
    into: int,
    config: KMeansConfig,
    *,
    seed: int,
    device: torch.device,
) -> Float32[Tensor, "k D"]:
    """Centroids of every cluster's rows clustered on their own: how very many clusters are reached.

    With a process group each process splits its share of the clusters, and every process has to call it.

    Args:
        data: rows.
        cluster: of every row.
        clusters: how many there are.
        into: parts of each; a cluster of fewer rows gets one for each row.
        config: how.
        seed: of the initial rows.
        device: that computes.
    """
    order = np.argsort(cluster, kind="stable")
    bounds = np.searchsorted(cluster[order], np.arange(clusters + 1))
    ends = np.concatenate([[0], np.cumsum(np.minimum(np.diff(bounds), into))])
    centroids = torch.zeros(int(ends[-1]), data.dim)
    for number in range(distributed.rank(), clusters, distributed.world_size()):
        members = order[bounds[number] : bounds[number + 1]]
        if len(members):
            own = InMemory(data.take(members))
            k = int(ends[number + 1] - ends[number])
            found = kmeans(own, k, config, seed=seed * 1_000_003 + number, device=device, alone=True)
            centroids[ends[number] : ends[number + 1]] = found
    # Every row is zero on all processes but one, so the sum copies it without rounding.
    return distributed.all_reduce_sum(centroids.to(device)).cpu() if distributed.world_size() > 1 else centroids


def _blocks(rows: int, alone: bool) -> list[tuple[int, int]]:
    blocks = [(start, min(start + BLOCK, rows)) for start in range(0, rows, BLOCK)]
    if alone:
        return blocks
    rank, world = distributed.rank(), distributed.world_size()
    return blocks[len(blocks) * rank // world : len(blocks) * (rank + 1) // world]


def _shared(centroids: Float32[Tensor, "k D"], alone: bool) -> Float32[Tensor, "k D"]:
    """Those of the main process: other machines may round k-means++ otherwise."""
    if alone or distributed.world_size() == 1:
        return centroids
    device = torch.device("cuda") if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    here = centroids.to(device).contiguous()
    torch.distributed.broadcast(here, 0)
    return here.cpu()


def _continued(note: Path | None, k: int, dim: int) -> tuple[int, bool, Float32[Tensor, "k D"] | None]:
    """Iteration reached, whether in full precision, and centroids; nothing where no run was cut short."""
    if note is None or not note.exists():
        return 0, False, None
    found = np.load(note)
    if found.shape != (k + 1, dim):
        return 0, False, None
    _log.info("k-means of %d clusters continues at step %d", k, int(found[0, 0]))
    return int(found[0, 0]), bool(found[0, -1]), torch.from_numpy(found[1:])
