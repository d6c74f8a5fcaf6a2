# SPDX-License-Identifier: Apache-2.0
"""The teacher as a moving average of the student; read `methods/dinov2.py` next."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from opendino.errors import ModelError

AT_ONCE = 2**26
"""Numbers that `move` holds a second time where the device decides."""


@torch.no_grad()
def update_ema(
    teacher: nn.Module, student: nn.Module, momentum: float, counts: Float32[Tensor, ""] | None = None
) -> None:
    """Move every parameter of the teacher: teacher = momentum * teacher + (1 - momentum) * student.

    Parameters only, heads included; buffers stay. At momentum 1 the teacher does not change at all.

    Args:
        teacher: changed in place.
        student: a module of the same structure.
        momentum: share of the old teacher that stays, 0 to 1.
        counts: as in `move`.

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
        move(mine, theirs, 1 - momentum, counts)


@torch.no_grad()
def move(
    averages: Sequence[Tensor], current: Sequence[Tensor], share: float, counts: Float32[Tensor, ""] | None = None
) -> None:
    """Move tensors a share of the way to others, in place.

    Args:
        averages: to be moved.
        current: of the same shapes.
        share: of the way, 0 to 1.
        counts: 1, or 0 where nothing is to change, on their device, which then decides; None is 1.
    """
    if counts is None:
        torch._foreach_lerp_(list(averages), list(current), share)
        return
    first = 0
    while first < len(averages):
        last, numbers = first, 0
        while last < len(averages) and (last == first or numbers + averages[last].numel() <= AT_ONCE):
            numbers, last = numbers + averages[last].numel(), last + 1
        # No kernel of torch takes the share of a linear interpolation of many tensors from the device.
        way = torch._foreach_sub(list(current[first:last]), list(averages[first:last]))
        torch._foreach_mul_(way, counts * share)
        torch._foreach_add_(list(averages[first:last]), way)
        first = last


def _here(parameter: Tensor) -> Tensor:
    """The share of a parameter that this process holds; the student's and the teacher's are cut alike."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
