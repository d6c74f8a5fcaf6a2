# SPDX-License-Identifier: Apache-2.0
"""From settings to the parts of a run: student and teacher, optimizer, schedules; `pretrain.py` puts them together."""

import dataclasses
from typing import TypeVar

import torch

from opendino.data.augment import CropsConfig
from opendino.data.normalization import normalization
from opendino.distributed import rank
from opendino.errors import ConfigError
from opendino.methods.coding_rate import CodingRate
from opendino.methods.dinov2 import DINOv2
from opendino.methods.method import Method
from opendino.methods.settings import DINOv2Config, TeacherConfig, teacher_schedules
from opendino.models.input_spec import InputSpec
from opendino.models.presets import BackboneConfig
from opendino.models.vision_transformer import VisionTransformer
from opendino.optim.adamw import OptimConfig, adamw, optim_schedules
from opendino.optim.param_groups import param_groups
from opendino.train.loop import Schedules
from opendino.train.state import seed_step

Made = TypeVar("Made", bound=DINOv2)

LAYER_SCALE = 1e-5
"""Start of LayerScale in training, as published; presets of published weights have 1, to be loaded over."""


def training_shape(student: BackboneConfig, crops: CropsConfig) -> BackboneConfig:
    """The student as it is trained: a position table of the global crops' size, LayerScale as published.

    What the user has set stays.
    """
    return dataclasses.replace(
        student,
        img_size=crops.global_size if student.img_size is None else student.img_size,
        init_values=LAYER_SCALE if student.init_values is None else student.init_values,
        in_chans=student.arguments().get("in_chans", 3),
    )


def build_method(
    student: BackboneConfig, crops: CropsConfig, config: DINOv2Config, seed: int = 0, kind: type[Made] = DINOv2
) -> Made:
    """Student, teacher and losses, initialised from the seed; the teacher is a copy without stochastic depth.

    Args:
        student: as `training_shape` returns it.
        crops: say what images the backbone expects.
        config: of the method.
        seed: of the run.
        kind: DINOv2 or what is made of it.

    Raises:
        ConfigError: the preset is not known.
        ModelError: a shape that cannot be built.
    """
    seed_step(seed, -1)
    if config.dino.objective == "coding_rate":
        kind = _of_coding_rate(kind)
    method = kind(
        build_backbone(student, crops), build_backbone(dataclasses.replace(student, drop_path_rate=0.0), crops), config
    )
    # The processes of a run hold the same networks and draw different stochastic depth.
    seed_step(seed, -1, rank())
    return method


def _of_coding_rate(kind: type[Made]) -> type[Made]:
    if not issubclass(CodingRate, kind):
        raise ConfigError(
            "dino.objective = coding_rate is for opendino pretrain; here prototypes are trained, so leave it out"
        )
    return CodingRate


def build_optimizer(method: Method, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW on the student's parameters, in groups of equal multipliers."""
    groups = param_groups(
        method.student, layerwise_decay=config.layerwise_decay, patch_embed_lr_mult=config.patch_embed_lr_mult
    )
    return adamw(groups, config)


def build_schedules(optim: OptimConfig, teacher: TeacherConfig, total: int, batch_size: int) -> Schedules:
    """Everything that changes with the step.

    Raises:
        ConfigError: a warm-up or freeze is longer than the run.
    """
    rates, ema = optim_schedules(optim, total, batch_size), teacher_schedules(teacher, total)
    return Schedules(rates.lr, rates.weight_decay, rates.last_layer_lr, ema.momentum, ema.temp)


def pick_device(name: str) -> torch.device:
    """Device of this process.

    Args:
        name: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: there is no CUDA device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device = cuda: there is no CUDA device here; use cpu or auto, see `opendino doctor`")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def build_backbone(config: BackboneConfig, crops: CropsConfig) -> VisionTransformer:
    """A fresh backbone that says what images it expects: global crops, normalised as they are."""
    backbone = config.build()
    mean, std = normalization(backbone.in_chans, crops.mean, crops.std)
    backbone.input_spec = InputSpec((crops.global_size, crops.global_size), backbone.in_chans, mean, std)
    return backbone
