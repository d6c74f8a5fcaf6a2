# SPDX-License-Identifier: Apache-2.0
"""Every setting of an adaptation: those of pretraining, where it starts from, and how new heads or LoRA are trained."""

import re
from dataclasses import dataclass, field

from opendino.config import check_numbers, expand_home
from opendino.errors import ConfigError
from opendino.eval.drift import DriftSettings
from opendino.methods.adapt import GramConfig
from opendino.models.refit import ChannelRule
from opendino.optim.schedules import steps_of
from opendino.train.config import PretrainConfig
from opendino.train.parts import build_schedules
from opendino.train.start import Kind

_LIMITS = {
    "head_steps": (0, float("inf")),
    "head_lr": (0, 1000),
    "head_momentum": (0, 1),
    "lora": (0, 2**12),
    "lora_alpha": (1e-6, 1e6),
}


@dataclass(frozen=True)
class AdaptSettings:
    """What an adaptation does besides training on.

    Attributes:
        start: "checkpoint" goes on with a run's heads and centres, "weights" builds new heads on the backbone, "auto"
            takes heads where there are any.
        head_steps: first steps, in which the heads alone learn: an int is steps, a float a share of the run.
        head_lr: learning rate of the heads, on the scale of `optim.base_lr`; 0 takes that.
        head_momentum: of the teacher's heads while they alone learn.
        channels: how the patch embedding is fitted to images of other channels, see `models/refit.py`.
        lora: inner width of LoRA's products; 0 trains the whole backbone.
        lora_alpha: their strength, as a multiple of the inner width's inverse.
        lora_layers: which linear layers of the backbone get them: a regular expression for the end of their names.
        held_out: images that the drift report looks at; empty for those of `knn.val`, or some of the run's own.
    """

    start: Kind = "auto"
    head_steps: int | float = 0
    head_lr: float = 0.0
    head_momentum: float = 0.99
    channels: ChannelRule = "auto"
    lora: int = 0
    lora_alpha: float = 16.0
    lora_layers: str = r"attn\.(qkv|proj)"
    held_out: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "held_out", expand_home(self.held_out))
        check_numbers("adapt", vars(self), _LIMITS)
        try:
            re.compile(self.lora_layers)
        except re.error as error:
            raise ConfigError(
                f"adapt.lora_layers = {self.lora_layers} is no regular expression ({error}); such as attn\\.(qkv|proj)"
            ) from None


@dataclass(frozen=True)
class Origin:
    """Where the weights came from; found at the start, and written into the run's settings.

    Attributes:
        kind: "checkpoint" or "weights".
        source: name or absolute path.
        sha256: of the teacher's names and weights; heads and centres count where there are any.
        step: of the checkpoint.
        channels: of the images that the weights were trained on.
    """

    kind: str = ""
    source: str = ""
    sha256: str = ""
    step: int = 0
    channels: int = 0


@dataclass(frozen=True)
class AdaptConfig(PretrainConfig):
    """Every setting of `opendino adapt`.

    Attributes:
        init: what is adapted: a run folder, or anything that `opendino.load` takes.
        resolution: side of the images that the position table is laid out for from now on, pixels; 0 leaves it.
    """

    init: str = ""
    resolution: int = 0
    adapt: AdaptSettings = field(default_factory=AdaptSettings)
    gram: GramConfig = field(default_factory=GramConfig)
    drift: DriftSettings = field(default_factory=DriftSettings)
    origin: Origin = field(default_factory=Origin)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "init", expand_home(self.init))
        check_numbers("adapt", {"resolution": self.resolution}, {"resolution": (0, 2**16)})

    @property
    def head_steps(self) -> int:
        """Steps in which the heads alone learn.

        Raises:
            ConfigError: they are no length, or leave none for the backbone.
        """
        steps = steps_of(self.adapt.head_steps, self.train.iterations, "adapt.head_steps")
        if steps >= self.train.iterations:
            raise ConfigError(
                f"adapt.head_steps = {self.adapt.head_steps} leaves none of {self.train.iterations} steps to the "
                "backbone; use fewer, such as 0.1"
            )
        return steps


def check_adaptation(config: AdaptConfig) -> None:
    """Check what goes beyond the settings of pretraining.

    Raises:
        ConfigError: settings contradict each other.
    """
    steps = config.head_steps
    if steps and not (config.dino.loss_weight or config.ibot.loss_weight):
        raise ConfigError(
            "adapt.head_steps trains heads, and with dino.loss_weight and ibot.loss_weight 0 there are none; use 0"
        )
    if config.adapt.head_lr and not config.optim.base_lr:
        raise ConfigError("optim.base_lr = 0 with adapt.head_lr above 0: nothing would be adapted; give both above 0")
    patch = config.student.arguments().get("patch_size", 16)
    if config.gram.size % patch:
        below = max(config.gram.size // patch, 1) * patch
        raise ConfigError(f"gram.size = {config.gram.size} is no multiple of the patch of {patch}; use {below}")
    left = config.train.iterations - steps
    build_schedules(config.optim, config.teacher, left, config.train.batch_size)


def typed(config: PretrainConfig) -> AdaptConfig:
    """A config as what it is; plans and runs know of those of pretraining only."""
    if not isinstance(config, AdaptConfig):
        raise TypeError(f"an adaptation takes an AdaptConfig, and a {type(config).__name__} came")
    return config
