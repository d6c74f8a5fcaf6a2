# SPDX-License-Identifier: Apache-2.0
"""Every process holds the whole networks, and their gradients are averaged after the backward pass.

Not torch's DistributedDataParallel: it wraps one module with one forward pass, while a method has several networks, a
backbone that is called with a list of crops, and passes that are to move nothing (gradient accumulation).
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from opendino.distributed import all_reduce_max, world_size

BUCKET = 2**24
"""Numbers of a message; a longer gradient is a message of its own."""


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Make the gradient of each parameter the mean over all processes, in place.

    A parameter without a gradient on some of the processes counts as zero there; without one on any, it stays so.

    Args:
        parameters: in the same order on all processes.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    here = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.uint8)
    moved = [parameter for parameter, any_ in zip(trained, all_reduce_max(here).tolist(), strict=True) if any_]
    gradients = []
    for parameter in moved:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    pending = []
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in pending:
        if work is not None:
            work.wait()
        flat.div_(world_size())
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    kind, room = None, 0
    for gradient in gradients:
        if (gradient.dtype, gradient.device) != kind or gradient.numel() > room:
            buckets.append([])
            kind, room = (gradient.dtype, gradient.device), BUCKET
        buckets[-1].append(gradient)
        room -= gradient.numel()
    return buckets
