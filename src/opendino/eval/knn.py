# SPDX-License-Identifier: Apache-2.0
"""k-NN by the published protocol: nearest training images vote, weighted by their similarity.

A query's neighbours are the training images with the largest cosine. With similarities `s` and a temperature `T`,
neighbour `i` votes for its class with weight `exp(s_i / T)`, divided by one constant per query. That constant (the
published code sums over the largest k asked for, others over the k in use) cancels in the ranking of the classes,
so no choice of it changes a prediction.

Read next: `_features.py`, `_data.py`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from opendino.distributed import all_reduce_sum, rank, world_size
from opendino.errors import ConfigError
from opendino.eval._data import LabelledConfig, LabelledFeatures, measure_pair
from opendino.eval._features import FeatureConfig, FeatureKind
from opendino.eval._results import Results
from opendino.eval.adapters import Backbone
from opendino.neighbours.exact import SearchConfig, nearest
from opendino.neighbours.matrix import InMemory

_log = logging.getLogger(__name__)

_QUERIES_AT_ONCE = 512
_TOP = 5


@dataclass(frozen=True)
class VoteConfig:
    """How neighbours vote.

    Attributes:
        k: numbers of neighbours, each measured.
        temperature: of the weights; small lets the nearest decide.
        feature: CLS, mean of the patches, or both side by side.
        n_per_class: few-shot banks, each of so many random training images a class, beside the whole bank.
        tries: random draws of each few-shot bank; figures are their mean.
    """

    k: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    feature: FeatureKind = "cls"
    n_per_class: tuple[int, ...] = ()
    tries: int = 1

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"knn.k = {list(self.k)}: give at least one number of neighbours, each 1 or more")
        if self.temperature <= 0:
            raise ConfigError(f"knn.temperature = {self.temperature}: give a positive number, published is 0.07")
        if min((self.tries, *self.n_per_class)) < 1:
            raise ConfigError("knn.n_per_class and knn.tries count images and draws: give 1 or more")


@dataclass(frozen=True)
class KnnConfig:
    """Settings of `opendino eval knn`."""

    data: LabelledConfig = field(default_factory=LabelledConfig)
    knn: VoteConfig = field(default_factory=VoteConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)


def run(
    backbone: Backbone,
    config: KnnConfig,
    *,
    out: Path | None = None,
    source: Mapping[str, object] | None = None,
) -> Results:
    """Measure a backbone on a labelled pair of data sets; every process of a group calls it.

    Args:
        backbone: moved to `config.features.device`.
        config: data, votes and features.
        out: folder for the JSON file, or None.
        source: where the model came from, for the record.

    Raises:
        ConfigError: a setting that does not fit the data.
        DataError: a part cannot be opened or has no labels.
    """
    kind = config.knn.feature

    def figures(pair: LabelledFeatures) -> tuple[dict[str, float], list[str]]:
        train, val = (part.select(kind, normalize=True) for part in (pair.train, pair.val))
        device = next(backbone.parameters()).device
        return evaluate(train, pair.train_labels, val, pair.val_labels, config.knn, device=device)

    return measure_pair("knn", backbone, config, figures, patches=kind != "cls", out=out, source=source)


def evaluate(
    train: Float[Tensor, "n D"],
    train_labels: Int[Tensor, " n"],
    val: Float[Tensor, "m D"],
    val_labels: Int[Tensor, " m"],
    config: VoteConfig = VoteConfig(),
    *,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, float], list[str]]:
    """Accuracies of every bank and every k, in percent, and notes on what had to be changed.

    Figures are named `top1_k20`, with `_n5` behind for a few-shot bank of 5 images a class; `top5_` only where there
    are more than five classes. Features may come un-normalised; labels count from 0.

    Raises:
        ConfigError: every k is larger than the bank.

    Source: official `eval/knn.py`. A few-shot bank uses each k up to its images a class, and that number itself.
    Differs: a class without a vote never fills up the five best; few-shot draws come from numpy's generator.
    """
    train, val = F.normalize(train.float(), dim=-1), F.normalize(val.float(), dim=-1)
    ks, notes = _fitting(config.k, len(train))
    classes = int(torch.cat([train_labels, val_labels]).max()) + 1
    banks: dict[str, tuple[list[int], list[Tensor]]] = {"": (ks, [torch.arange(len(train))])}
    for n in config.n_per_class:
        draws = [few_shot_rows(train_labels, n, seed) for seed in range(config.tries)]
        banks[f"_n{n}"] = (sorted({*(k for k in config.k if k <= n), n}), draws)
    figures: dict[str, float] = {}
    for name, (bank_ks, draws) in banks.items():
        tries = [
            accuracies(predict(train[rows], train_labels[rows], val, bank_ks, classes, config.temperature, device),
                       val_labels, bank_ks, classes)
            for rows in draws
        ]  # fmt: skip
        for figure in tries[0]:
            figures[f"{figure}{name}"] = float(np.mean([one[figure] for one in tries]))
    return figures, notes


def predict(
    bank: Float[Tensor, "n D"],
    bank_labels: Int[Tensor, " n"],
    queries: Float[Tensor, "m D"],
    ks: Sequence[int],
    classes: int,
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "ks m top"]:
    """The five best classes of every query for each k, best first, -1 where fewer got a vote.

    With a process group each process answers a share of the queries and all return all answers. A share is whole
    blocks, the same for any number of processes, so that none changes a bit of a similarity.

    Args:
        bank: L2-normalised features of the labelled images.
        bank_labels: their classes.
        queries: L2-normalised features.
        ks: numbers of neighbours, none larger than the bank.
        classes: number of classes.
        temperature: of the vote.
        device: where similarities are computed.
    """
    best = torch.zeros(len(ks), len(queries), _TOP, dtype=torch.int64)
    matrix, search = InMemory(bank), exactly(device)
    for rows in torch.arange(len(queries)).split(_QUERIES_AT_ONCE)[rank() :: world_size()]:
        similarities, indices = nearest(queries[rows].float(), matrix, max(ks), search)
        # Features that are not finite, as of a run that breaks down, have no neighbours and are nobody's.
        none = indices < 0
        labels = bank_labels[indices.clamp(min=0)].to(device)
        votes = tally(similarities.masked_fill(none, -torch.inf).to(device), labels, ks, classes, temperature)
        votes = votes.nan_to_num(0.0)
        best[:, rows] = _ranking(votes).cpu()
    return best if world_size() == 1 else all_reduce_sum(best.to(device)).cpu()


def exactly(device: torch.device | str) -> SearchConfig:
    """How votes find their neighbours: in float32 from the start, for a protocol is no place for candidates."""
    return SearchConfig(precision="fp32", device=str(device))


def tally(
    similarities: Float[Tensor, "q k"], labels: Int[Tensor, "q k"], ks: Sequence[int], classes: int, temperature: float
) -> Float[Tensor, "ks q classes"]:
    """Weighted votes for each class from the first k neighbours, for each k; see the head of this file.

    Args:
        similarities: of the neighbours, largest first.
        labels: classes of the neighbours.
        ks: each at most the number of neighbours given.
        classes: number of classes.
        temperature: of the weights.
    """
    weights = (similarities.float() / temperature).softmax(dim=1)
    votes = weights.new_zeros(len(ks), len(weights), classes)
    for position, k in enumerate(ks):
        votes[position].scatter_add_(1, labels[:, :k], weights[:, :k])
    return votes


def accuracies(
    best: Int[Tensor, "ks m top"], labels: Int[Tensor, " m"], ks: Sequence[int], classes: int
) -> dict[str, float]:
    """Top-1 and, with more than five classes, top-5 accuracy for each k, in percent."""
    hits = best == labels[None, :, None]
    figures = {f"top1_k{k}": 100 * float(hits[i, :, 0].double().mean()) for i, k in enumerate(ks)}
    if classes > _TOP:
        figures |= {f"top5_k{k}": 100 * float(hits[i].any(dim=1).double().mean()) for i, k in enumerate(ks)}
    return figures


def few_shot_rows(labels: Int[Tensor, " n"], per_class: int, seed: int) -> Int[Tensor, " rows"]:
    """Positions of so many random images of each class, in increasing order.

    Raises:
        ConfigError: a class has fewer images.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten().numpy()
        if len(members) < per_class:
            raise ConfigError(
                f"knn.n_per_class = {per_class}: class {label} has {len(members)} training images; give at most those"
            )
        rows.append(rng.choice(members, per_class, replace=False))
    return torch.from_numpy(np.sort(np.concatenate(rows)))


def _fitting(ks: Sequence[int], bank: int) -> tuple[list[int], list[str]]:
    fitting = sorted({k for k in ks if k <= bank})
    if not fitting:
        raise ConfigError(f"knn.k = {list(ks)}: the bank has {bank} images; give a k of at most {bank}")
    if len(fitting) == len(set(ks)):
        return fitting, []
    note = f"left out k = {', '.join(str(k) for k in sorted(ks) if k > bank)}: the bank has only {bank} images"
    _log.warning("k-NN: %s", note)
    return fitting, [note]


def _ranking(votes: Float[Tensor, "ks q classes"]) -> Int[Tensor, "ks q top"]:
    # A stable sort gives a tie to the class with the smaller number, on every device.
    order = votes.argsort(dim=-1, descending=True, stable=True)[..., :_TOP]
    order = order.masked_fill(votes.gather(-1, order) == 0, -1)
    return F.pad(order, (0, _TOP - order.shape[-1]), value=-1)
