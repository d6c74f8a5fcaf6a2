# SPDX-License-Identifier: Apache-2.0
"""The settings of DINOv2, term by term, and what of them changes with the step; `dinov2.py` reads them."""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from opendino.config import check_numbers
from opendino.errors import ConfigError
from opendino.layers.dino_head import HEAD_LIMITS
from opendino.optim.schedules import Schedule, cosine, linear, steps_of


@dataclass(frozen=True)
class DINOConfig:
    """The image-level term, its head, and how the teacher's targets are made for both terms.

    Attributes:
        loss_weight: weight of the term; 0 leaves it out, and local crops with it.
        prototypes: number of prototypes K.
        hidden_dim: width of the head's MLP.
        bottleneck_dim: width before the prototypes.
        nlayers: linear layers of the head's MLP.
        centering: targets by a running centre, or by Sinkhorn-Knopp; "none" leaves nothing against collapse, for
            experiments on it.
        in_blocks: with 16,384 prototypes or more never hold the student's logits: less memory, and faster.
        needed_tokens: behind the last block's attention compute only the tokens that losses look at, class tokens and
            masked patches: faster, same numbers.
        objective: agreement on prototypes, as published, or of features kept apart by their coding rate, without
            prototypes and centering (`methods/coding_rate.py`).
        coding_weight: weight of the coding rate.
        coding_eps: its coarseness.
    """

    loss_weight: float = 1.0
    prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    nlayers: int = 3
    centering: Literal["centering", "sinkhorn_knopp", "none"] = "centering"
    in_blocks: bool = True
    needed_tokens: bool = True
    objective: Literal["prototypes", "coding_rate"] = "prototypes"
    coding_weight: float = 1.0
    coding_eps: float = 0.5

    def __post_init__(self) -> None:
        _check_weight("dino.loss_weight", self.loss_weight)
        _check_weight("dino.coding_weight", self.coding_weight)
        check_numbers("dino", vars(self), HEAD_LIMITS | {"coding_eps": (1e-6, 1e6)})


@dataclass(frozen=True)
class IBOTConfig:
    """The patch-level term. The fields of the head are read only where it has its own.

    Attributes:
        loss_weight: weight of the term; 0 leaves it out.
        separate_head: whether patches have a head of their own, or share the images'.
        prototypes: number of prototypes K of the own head.
        hidden_dim: width of the own head's MLP.
        bottleneck_dim: width before the own head's prototypes.
        nlayers: linear layers of the own head's MLP.
    """

    loss_weight: float = 1.0
    separate_head: bool = False
    prototypes: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    nlayers: int = 3

    def __post_init__(self) -> None:
        _check_weight("ibot.loss_weight", self.loss_weight)
        check_numbers("ibot", vars(self), HEAD_LIMITS)


@dataclass(frozen=True)
class KoLeoConfig:
    """The spreading term.

    Attributes:
        loss_weight: weight of the term, for each of the two global crops; 0 leaves it out.
        gather: look for neighbours among the images of all processes, which makes the loss that of one process with
            all of them; published runs looked among those of each process (32 to 64 images).
    """

    loss_weight: float = 0.1
    gather: bool = True

    def __post_init__(self) -> None:
        _check_weight("koleo.loss_weight", self.loss_weight)


@dataclass(frozen=True)
class TeacherConfig:
    """How the teacher follows the student and how sharp its targets are.

    Attributes:
        momentum: share of the teacher that stays at each step, at the start and at the end, a cosine between.
        temp: temperature of the targets at the start and after its warm-up, a line between.
        temp_warmup: length of that warm-up: an int is steps, a float a share of the run.
    """

    momentum: tuple[float, float] = (0.992, 1.0)
    temp: tuple[float, float] = (0.04, 0.07)
    temp_warmup: int | float = 0.3

    def __post_init__(self) -> None:
        if not all(0 <= momentum <= 1 for momentum in self.momentum):
            raise ConfigError(f"teacher.momentum = {self.momentum} are not shares; use two numbers of 0 to 1")
        check_numbers("teacher", vars(self), {"temp": (0, math.inf), "temp_warmup": (0, math.inf)})
        if not all(temp > 0 for temp in self.temp):
            raise ConfigError(f"teacher.temp = {self.temp} cannot sharpen; use two numbers above 0, such as 0.04, 0.07")


@dataclass(frozen=True)
class DINOv2Config:
    """All of the method's settings; the defaults are the official ones for a ViT-L/16 on ImageNet-1k."""

    dino: DINOConfig = field(default_factory=DINOConfig)
    ibot: IBOTConfig = field(default_factory=IBOTConfig)
    koleo: KoLeoConfig = field(default_factory=KoLeoConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    def __post_init__(self) -> None:
        if self.dino.loss_weight == self.ibot.loss_weight == self.koleo.loss_weight == 0:
            raise ConfigError(
                "dino.loss_weight, ibot.loss_weight and koleo.loss_weight are all 0, which leaves nothing to learn; "
                "set at least one above 0"
            )


class TeacherSchedules(NamedTuple):
    """What the loop passes to the method at each step."""

    momentum: Schedule
    temp: Schedule


def teacher_schedules(config: TeacherConfig, total: int) -> TeacherSchedules:
    """Schedules of the teacher in a run of `total` steps.

    Raises:
        ConfigError: the warm-up is longer than the run.
    """
    warmup = steps_of(config.temp_warmup, total, "teacher.temp_warmup")
    return TeacherSchedules(momentum=cosine(*config.momentum, total), temp=linear(*config.temp, warmup))


def _check_weight(name: str, weight: float) -> None:
    if not 0 <= weight < float("inf"):
        raise ConfigError(f"{name} = {weight} is no weight; use a number of 0 or more")
