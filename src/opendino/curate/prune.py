# SPDX-License-Identifier: Apache-2.0
"""Optional stage: images that say nearly the same as another of their cluster go (SemDeDup).

Unlike `dedup.py`, which drops copies, this thins out what a semantic embedding finds alike; it looks only inside
clusters, so its cost is the sum of the squares of their sizes. Read next: `balance.py`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from opendino.curate._features import OnDisk
from opendino.data.samplers import keyed_rng
from opendino.errors import ConfigError
from opendino.stages.engines import run_whole
from opendino.stages.folder import Stage, digest_of, write_array

Stay = Literal["hard", "easy", "random"]


@dataclass(frozen=True)
class PruneConfig:
    """What is too much alike.

    Attributes:
        eps: an image goes where its cosine to one that comes before it in its cluster is above 1 - eps; 0 switches
            pruning off.
        stay: which come first: "hard", least like the centroid; "easy", most like it; or "random".
        seed: of "random".

    Source: SemDeDup, arXiv 2303.09540, section 3.
    """

    eps: float = 0.0
    stay: Stay = "hard"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 2:
            raise ConfigError(f"prune.eps = {self.eps}: give 0 (off) to 2")


def run(out: Path, selection: Path, features: Path, clusters: Path, config: PruneConfig) -> Path:
    """Prune a selection by its first level of clusters.

    Returns:
        Folder with `kept.npy`.
    """
    folder = out / "prune"
    inputs = {"selection": digest_of(selection), "features": digest_of(features), "cluster": digest_of(clusters)}
    stage = Stage(folder, "prune", inputs, asdict(config))

    def work() -> dict[str, Any]:
        rows = np.load(selection / "kept.npy")
        matrix = OnDisk(features, rows)
        cluster, centroids = (np.load(clusters / f"{what}-1.npy") for what in ("clusters", "centroids"))
        stays = np.ones(len(rows), dtype=bool)
        order = np.argsort(cluster, kind="stable")
        bounds = np.searchsorted(cluster[order], np.arange(len(centroids) + 1))
        for number, centroid in enumerate(torch.from_numpy(centroids)):
            members = order[bounds[number] : bounds[number + 1]]
            if len(members) > 1:
                random = keyed_rng(config.seed, "prune", number).random(len(members))
                stays[members] = thin(matrix.take(members), centroid, config, random)
        write_array(folder / "kept.npy", rows[stays])
        return {"images": len(rows), "kept": int(stays.sum()), "dropped": int((~stays).sum())}

    run_whole(stage, work)
    return folder


def thin(
    members: Float32[Tensor, "n D"],
    centroid: Float32[Tensor, " D"],
    config: PruneConfig,
    random: np.ndarray,
    block: int = 4096,
) -> Bool[np.ndarray, " n"]:
    """Which members of one cluster stay.

    Args:
        members: of length 1.
        centroid: of their cluster.
        config: `eps` and `stay`.
        random: a number for each, for `stay="random"`.
        block: rows compared at once.
    """
    likeness = (members @ centroid).double().numpy()
    score = {"hard": likeness, "easy": -likeness, "random": random}[config.stay]
    order: Int64[np.ndarray, " n"] = np.lexsort([np.arange(len(score)), score])
    ranked = members[torch.from_numpy(order)]
    stays = np.ones(len(order), dtype=bool)
    for start in range(0, len(ranked), block):
        rows = ranked[start : start + block]
        # Only those before it count: the triangle below the diagonal.
        cosine = (rows @ ranked[: start + len(rows)].T).tril_(diagonal=start - 1)
        stays[order[start : start + len(rows)]] = ~(cosine > 1 - config.eps).any(dim=1).numpy()
    return stays
