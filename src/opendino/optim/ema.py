# SPDX-License-Identifier: Apache-2.0
"""The teacher as a moving average of the student; read `methods/dinov2.py` next."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from opendino.errors import ModelError


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every parameter of the teacher: teacher = momentum * teacher + (1 - momentum) * student.

    Parameters only, heads included; buffers stay. At momentum 1 the teacher does not change at all.

    Args:
        teacher: changed in place.
        student: a module of the same structure.
        momentum: share of the old teacher that stays, 0 to 1.

    Raises:
        ModelError: the modules' parameters differ in name or shape.

    Source: Grill et al. 2020 (BYOL), equation 1; official `train/ssl_meta_arch.py`, `update_teacher`.
    """
    averages: dict[str, Tensor] = dict(teacher.named_parameters())
    current: dict[str, Tensor] = dict(student.named_parameters())
    if {name: p.shape for name, p in averages.items()} != {name: p.shape for name, p in current.items()}:
        raise ModelError(
            f"the teacher ({len(averages)} parameters) and the student ({len(current)}) differ in structure; "
            "build both with the same settings"
        )
    if averages:
        mine, theirs = ([_here(of[name]) for name in averages] for of in (averages, current))
        torch._foreach_lerp_(mine, theirs, 1 - momentum)


def _here(parameter: Tensor) -> Tensor:
    """The share of a parameter that this process holds; the student's and the teacher's are cut alike."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
