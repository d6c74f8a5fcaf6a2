# SPDX-License-Identifier: Apache-2.0
"""Stage 6b: a sample of the wanted size that gives every concept its share, down the tree of clusters.

From the root, a node's budget goes to its children in equal shares, but to none more than it has; below, the same
again; in a cluster of images the images are drawn. Read next: `cluster.py`, `mix.py`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from opendino.curate.cluster import _place_in_group
from opendino.data.samplers import keyed_rng
from opendino.errors import ConfigError
from opendino.stages.engines import run_whole
from opendino.stages.folder import Stage, digest_of, write_array


@dataclass(frozen=True)
class BalanceConfig:
    """How much is drawn, and how.

    Attributes:
        size: images wanted; 0 for half of those that are there.
        choose: images of a cluster: "random", or the "closest" to its centroid.
        copies: times that one image may be drawn.
        seed: of all random draws.
    """

    size: int = 0
    choose: Literal["random", "closest"] = "random"
    copies: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 0 or self.copies < 1:
            raise ConfigError(f"balance.size = {self.size}, balance.copies = {self.copies}: give 0 or more, 1 or more")


def run(out: Path, selection: Path, clusters: Path, config: BalanceConfig) -> Path:
    """Draw the balanced sample.

    Returns:
        Folder with `kept.npy` (rows of the index), `times.npy` (how often each) and `paths.npy` (cluster of every
        level, the first level first).

    Raises:
        ConfigError: more is wanted than there is.
    """
    folder = out / "balance"
    rows = np.load(selection / "kept.npy")
    check_size(len(rows), config)
    inputs = {"selection": digest_of(selection), "cluster": digest_of(clusters)}
    stage = Stage(folder, "balance", inputs, asdict(config))
    run_whole(stage, lambda: _draw(folder, rows, clusters, config))
    return folder


def check_size(images: int, config: BalanceConfig) -> None:
    """Check that there is as much as is wanted.

    Raises:
        ConfigError: there is less.
    """
    there = images * config.copies
    if images and config.size > there:  # of no images at all clustering says why
        raise ConfigError(
            f"balance.size = {config.size}: there are {images} images, at most {config.copies} times each; give "
            f"{there} or less, or raise balance.copies"
        )


def _draw(folder: Path, rows: Int64[np.ndarray, " n"], clusters: Path, config: BalanceConfig) -> dict[str, Any]:
    levels = len(list(clusters.glob("clusters-*.npy")))
    tree = [np.load(clusters / f"clusters-{level}.npy") for level in range(1, levels + 1)]
    distance = np.load(clusters / "distances-1.npy")
    size = config.size or max(len(rows) * config.copies // 2, 1)
    times = sample(
        tree, size, config.seed, copies=config.copies, closest=distance if config.choose == "closest" else None
    )
    drawn = np.flatnonzero(times)
    paths = [drawn]
    for parents in tree:
        paths.append(parents[paths[-1]])
    write_array(folder / "kept.npy", rows[drawn])
    write_array(folder / "times.npy", times[drawn])
    write_array(folder / "paths.npy", np.stack(paths[1:], axis=1))
    top = [np.bincount(_at_top(tree)[part], minlength=int(tree[-1].max()) + 1) for part in (slice(None), drawn)]
    return {
        "images": len(rows),
        "kept": len(drawn),
        "drawn": int(times.sum()),
        "concept_entropy_before": round(entropy(top[0]), 4),
        "concept_entropy_after": round(entropy(top[1]), 4),
        "concept_entropy_most": round(float(np.log(max((top[0] > 0).sum(), 1))), 4),
    }


def _at_top(tree: list[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " n"]:
    place = np.arange(len(tree[0]))
    for parents in tree:
        place = parents[place]
    return place


def entropy(counts: Int64[np.ndarray, " k"]) -> float:
    """Entropy of shares, nats."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return max(0.0, float(-(shares * np.log(shares)).sum()))  # of equals max takes the first: not -0.0 for one concept


def sample(
    tree: list[Int64[np.ndarray, " _"]],
    size: int,
    seed: int,
    *,
    copies: int = 1,
    closest: np.ndarray | None = None,
) -> Int64[np.ndarray, " n"]:
    """How often each row is drawn.

    Args:
        tree: parent of each row, then parent of each cluster of the first level, and so on up.
        size: rows wanted; all are taken, `copies` times, where there are fewer.
        seed: of ties between children, and of the rows of a cluster.
        copies: times that a row may be drawn.
        closest: distance of each row to its centroid: the smallest are drawn instead of random ones.

    Source: arXiv 2405.15613, section 3.4.
    """
    # Rows below every node of every level, the rows themselves last.
    sizes = [np.full(len(tree[0]), copies, dtype=np.int64)]
    for parents in tree:
        # Clusters that nothing belongs to, the last ones, are not in the sizes yet.
        below = sizes[-1] = np.pad(sizes[-1], (0, len(parents) - len(sizes[-1])))
        sizes.append(np.bincount(parents, weights=below, minlength=int(parents.max()) + 1).astype(np.int64))
    budget = shares(sizes[-1], size, keyed_rng(seed, "balance", len(tree)))
    for level in range(len(tree) - 1, 0, -1):
        parents, below = tree[level], sizes[level]
        order = np.argsort(parents, kind="stable")
        bounds = np.searchsorted(parents[order], np.arange(len(budget) + 1))
        given = np.zeros(len(parents), dtype=np.int64)
        for node in np.flatnonzero(budget):
            children = order[bounds[node] : bounds[node + 1]]
            rng = keyed_rng(seed, "balance", (level << 40) + int(node))
            given[children] = shares(below[children], int(budget[node]), rng)
        budget = given
    return _leaves(tree[0], budget, seed, closest)


def shares(sizes: Int64[np.ndarray, " k"], budget: int, rng: np.random.Generator) -> Int64[np.ndarray, " k"]:
    """What each child gets of a budget: the same for all, but none more than it has; the rest one by one at random.

    Args:
        sizes: what each child has.
        budget: to be given; all is given where it is more than there is.
        rng: decides which of the children that could take one more get it.
    """
    if budget >= sizes.sum():
        return sizes.copy()
    # After the j smallest are filled, the others share what is left.
    order = np.sort(sizes)
    filled = np.concatenate([[0], np.cumsum(order)[:-1]])
    left = np.arange(len(sizes), 0, -1)
    level = (budget - filled) // left
    cut = int(level[np.argmax(level < order)])
    given = np.minimum(sizes, cut)
    more = np.flatnonzero(sizes > cut)
    given[rng.permutation(more)[: budget - int(given.sum())]] += 1
    return given


def _leaves(
    cluster: Int64[np.ndarray, " n"], budget: Int64[np.ndarray, " k"], seed: int, closest: np.ndarray | None
) -> Int64[np.ndarray, " n"]:
    """Draw the rows of every cluster: all equally often, and some of them once more."""
    score = keyed_rng(seed, "rows", 0).random(len(cluster)) if closest is None else closest
    order = np.lexsort([np.arange(len(cluster)), score, cluster])
    budget = np.pad(budget, (0, max(int(cluster.max()) + 1 - len(budget), 0)))
    members = np.bincount(cluster, minlength=len(budget))
    whole, rest = np.divmod(budget, np.maximum(members, 1))
    times = whole[cluster]
    times[order] += _place_in_group(cluster[order]) < rest[cluster[order]]
    return times
