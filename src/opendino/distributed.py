# SPDX-License-Identifier: Apache-2.0
"""What a function needs to know of the other processes; every call is the identity in a single process.

Losses and metrics call these, so they give the same figures on any number of processes without knowing it.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def is_initialized() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0 without a process group."""
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


@torch.no_grad()
def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, as a new tensor without gradient."""
    total = tensor.detach().clone()
    if is_initialized():
        dist.all_reduce(total)
    return total


@torch.no_grad()
def all_reduce_max(tensor: Tensor) -> Tensor:
    """Elementwise largest of a tensor over all processes, as a new tensor without gradient."""
    largest = tensor.detach().clone()
    if is_initialized():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def barrier() -> None:
    """Wait for all processes."""
    if is_initialized():
        dist.barrier()
