# SPDX-License-Identifier: Apache-2.0
"""The optimizer's settings, its schedules and AdamW itself; read `clipping.py` next."""

import contextlib
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from opendino.config import check_numbers
from opendino.errors import ConfigError
from opendino.optim.schedules import Schedule, cosine, hold, steps_of

_LIMITS = dict.fromkeys(("base_lr", "min_lr", "clip_grad", "layerwise_decay", "patch_embed_lr_mult"), (0, math.inf))
_LIMITS |= {"weight_decay": (0, math.inf), "eps": (0, math.inf), "lr_reference_batch": (1, math.inf)}
_LIMITS |= {"warmup": (0, math.inf), "cooldown": (0, math.inf), "freeze_last_layer": (0, math.inf)}


@dataclass(frozen=True)
class OptimConfig:
    """How the student learns. Lengths: an int is steps, a float in [0, 1] a share of the run.

    Attributes:
        base_lr: learning rate at `lr_reference_batch` images; at another batch size it is scaled.
        lr_scaling: the peak is `base_lr` times the square root of (batch size / reference), times that ratio
            itself, or unscaled.
        lr_reference_batch: batch size at which `base_lr` is meant.
        min_lr: learning rate at the end of the run.
        schedule: of the learning rate behind the warm-up: half a cosine, or constant until the cool-down.
        cooldown: length of the linear fall at the end of a constant rate.
        warmup: length of the linear rise of the learning rate from 0.
        freeze_last_layer: length at the start during which the heads' last layers do not learn.
        weight_decay: at the start and at the end of the run, a cosine between.
        clip_grad: largest gradient norm of each sub-network; 0 for no clipping.
        layerwise_decay: factor on the learning rate from one block to the block before it; 1 for none.
        patch_embed_lr_mult: further factor on the learning rate of the patch embedding.
        betas: AdamW's decay rates of its two moments.
        eps: AdamW's guard of the division.
        fused: AdamW in one kernel where the device has it; else one for each operation, equal but for rounding.

    Source: official `configs/ssl_default_config.yaml`; the defaults here are its values.
    """

    base_lr: float = 4e-3
    lr_scaling: Literal["sqrt", "linear", "none"] = "sqrt"
    lr_reference_batch: int = 1024
    min_lr: float = 1e-6
    schedule: Literal["cosine", "constant"] = "cosine"
    cooldown: int | float = 0.2
    warmup: int | float = 0.1
    freeze_last_layer: int | float = 0.01
    weight_decay: tuple[float, float] = (0.04, 0.4)
    clip_grad: float = 3.0
    layerwise_decay: float = 0.9
    patch_embed_lr_mult: float = 0.2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    fused: bool = True

    def __post_init__(self) -> None:
        check_numbers("optim", vars(self), _LIMITS)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas = {self.betas} are not decay rates; use two numbers from 0 to below 1")


class OptimSchedules(NamedTuple):
    """What `param_groups.set_schedule` asks for, as functions of the step."""

    lr: Schedule
    weight_decay: Schedule
    last_layer_lr: Schedule


def peak_lr(config: OptimConfig, batch_size: int) -> float:
    """Learning rate at the end of the warm-up, for a batch of `batch_size` images over all processes."""
    ratio = batch_size / config.lr_reference_batch
    return config.base_lr * {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[config.lr_scaling]


def optim_schedules(config: OptimConfig, total: int, batch_size: int) -> OptimSchedules:
    """Schedules of a run of `total` steps with `batch_size` images a step over all processes.

    Raises:
        ConfigError: a warm-up or freeze is longer than the run.
    """
    peak, warmup = peak_lr(config, batch_size), steps_of(config.warmup, total, "optim.warmup")
    freeze = steps_of(config.freeze_last_layer, total, "optim.freeze_last_layer")
    falling = steps_of(config.cooldown, total, "optim.cooldown")

    def rate(freeze: int) -> Schedule:
        if config.schedule == "constant":
            return hold(peak, config.min_lr, total, warmup, falling, freeze)
        return cosine(peak, config.min_lr, total, warmup, freeze=freeze)

    return OptimSchedules(lr=rate(0), weight_decay=cosine(*config.weight_decay, total), last_layer_lr=rate(freeze))


def adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW on parameter groups: fused where it is asked for and the device has it, else a kernel for each operation.

    The learning rate and the weight decay are 0 until `param_groups.set_schedule` writes them.
    """
    if config.fused:
        with contextlib.suppress(RuntimeError):  # torch's answer where a device has no fused kernel
            return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, betas=config.betas, eps=config.eps, fused=True)
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, betas=config.betas, eps=config.eps, foreach=True)
