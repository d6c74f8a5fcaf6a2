# SPDX-License-Identifier: Apache-2.0
"""A watch that names a collapse from figures alone: constant features, one prototype, entropy at either bound.

It holds no tensors and touches no training: a loop hands it the figures of each look (`health.summary`) and gets back
sentences. A state has to last for `patience` looks, so that the first steps, when all features agree, are no alarm.
In a run the figures come from `train/glance.py`, each few steps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from opendino.config import check_numbers
from opendino.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class WatchConfig:
    """How often a run is looked at without labels, what counts as collapsed, and what is done about it.

    Attributes:
        every: steps between two looks at a few images; 0 looks only with the k-NN. A small batch makes them fewer,
            see `share`.
        images: of a look; fewer beside a small batch, but never less than 16.
        share: most of a step's work that looks may come to, 0 to 1; 1 looks as often as `every` says.
        action: "warn" says a collapse, "stop" ends the run, "off" names none.
        patience: looks in a row that have to agree.
        start: step before which nothing is named; features of a fresh network are nearly constant.
        mean_cosine: of CLS features, above which they are constant.
        rank: effective rank of centred CLS features, below which they are constant.
        prototypes: perplexity of first choices, below which one prototype has them all.
        entropy_low: entropy of the mean probabilities as a part of ln K, below which all images share a few prototypes.
        entropy_high: mean entropy as a part of ln K, above which every image is undecided.
    """

    every: int = 20
    images: int = 128
    share: float = 0.02
    action: Literal["warn", "stop", "off"] = "warn"
    patience: int = 2
    start: int = 50
    mean_cosine: float = 0.99
    rank: float = 1.5
    prototypes: float = 1.5
    entropy_low: float = 0.05
    entropy_high: float = 0.995

    def __post_init__(self) -> None:
        if self.every < 0 or self.images < 2:
            raise ConfigError(f"watch.every = {self.every}, watch.images = {self.images}: use 0 or more, 2 or more")
        if not 0 < self.share <= 1:
            raise ConfigError(f"watch.share = {self.share}: use a share above 0 and up to 1, such as 0.02")
        if self.patience < 1 or self.start < 0:
            raise ConfigError(f"watch.patience = {self.patience}, watch.start = {self.start}: use 1 or more, 0 or more")
        shares = dict.fromkeys(("mean_cosine", "entropy_low", "entropy_high"), (0, 1))
        check_numbers("watch", vars(self), shares | dict.fromkeys(("rank", "prototypes"), (0, math.inf)))


@dataclass
class Watch:
    """Remembers how long each state has lasted.

    Attributes:
        config: limits.
        counts: looks in a row at which each state was seen.
        named: states that were named already; each is named once, until it has passed.
    """

    config: WatchConfig = field(default_factory=WatchConfig)
    counts: dict[str, int] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)

    def look(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """Sentences for collapses that have lasted long enough, new ones only.

        Args:
            step: of the run.
            figures: names of `health.summary`, bare or with a prefix that ends in "/"; missing ones are not judged.

        Raises:
            TrainingError: one is found and `action` is "stop".
        """
        if self.config.action == "off" or step < self.config.start:
            return []
        bare = {name.rpartition("/")[2]: value for name, value in figures.items()}
        found = states(bare, self.config)
        self.counts = {name: self.counts.get(name, 0) + 1 for name in found}
        self.named &= set(found)
        news = [name for name in found if self.counts[name] >= self.config.patience and name not in self.named]
        self.named |= set(news)
        sentences = [f"collapse at step {step}: {found[name]}" for name in news]
        if sentences and self.config.action == "stop":
            raise TrainingError("; ".join(sentences))
        return sentences


def states(figures: Mapping[str, float], config: WatchConfig = WatchConfig()) -> dict[str, str]:
    """Collapses that a single look shows, by name, each with a sentence of what was seen and what helps."""
    found: dict[str, str] = {}

    def judge(name: str, figure: str, beyond: bool, sentence: str) -> None:
        if beyond:
            found.setdefault(name, sentence.format(figures[figure]))

    slower = "lower the learning rate, or raise koleo's weight"
    centre = "centre the teacher, or use sinkhorn_knopp"
    cosine, rank = figures.get("mean_cosine", 0.0), figures.get("centred_rank", math.inf)
    judge(
        "features", "mean_cosine", cosine > config.mean_cosine, f"features are constant, mean cosine {{:.4f}}; {slower}"
    )
    judge("features", "centred_rank", rank < config.rank, f"features span only {{:.2f}} directions; {slower}")
    first, shared = figures.get("prototypes_perplexity", math.inf), figures.get("entropy_of_mean", math.inf)
    sentence = f"one prototype is the first choice of nearly all images, perplexity {{:.2f}}; {centre}"
    judge("prototype", "prototypes_perplexity", first < config.prototypes, sentence)
    sentence = f"all images share a few prototypes, the entropy of the mean is {{:.3f}} of its bound; {centre}"
    judge("sharp", "entropy_of_mean", shared < config.entropy_low, sentence)
    sentence = "every image is undecided, the mean entropy is {:.3f} of its bound; lower the teacher's temperature"
    judge("flat", "mean_entropy", figures.get("mean_entropy", 0.0) > config.entropy_high, sentence)
    for name in ("mean_cosine", "effective_rank", "mean_entropy"):
        judge("not finite", name, not math.isfinite(figures.get(name, 0)), "figures are not finite ({})")
    return found
