# SPDX-License-Identifier: Apache-2.0
"""What a function needs to know of the other processes; every call is the identity in a single process.

Losses and metrics call these, so they give the same figures on any number of processes without knowing it.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from opendino.errors import ConfigError, Elsewhere, TrainingError

_WAIT = timedelta(days=30)  # a launcher notices the end of a process; a process that is slow is waited for
_LONGEST_MESSAGE = 4096  # bytes
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo, of a process that has ended


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


@contextlib.contextmanager
def joined(alone: bool = False) -> Iterator[None]:
    """Be one of the processes that a launcher (torchrun, SLURM) has started, where it has; leave them at the end.

    Tensors of the CPU travel by gloo, those of a CUDA device by nccl; each process takes the device of its local
    number. Processes wait for each other without limit, nearly: a launcher ends all when one has ended.

    Args:
        alone: make a group of one where there is no launcher, for what works on groups only.

    Raises:
        ConfigError: the launcher's variables are not whole.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_initialized() or not (several or alone):
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if not several:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE = {os.environ['WORLD_SIZE']} says that there are other processes, but {', '.join(missing)} is "
            "not set; start all of them by torchrun, or unset WORLD_SIZE"
        )
    cuda, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if local < cuda:
        torch.cuda.set_device(local)
    dist.init_process_group(backend, timeout=_WAIT)
    try:
        yield
    except Elsewhere:
        # A launcher ends all processes as soon as one has ended: first the one that knows why has to say so.
        time.sleep(1)
        raise
    except RuntimeError as error:
        if not (isinstance(error, dist.DistBackendError) or any(sign in str(error) for sign in _GONE)):
            raise
        raise TrainingError(
            f"process {rank()} lost another one of its run ({str(error).splitlines()[0]}); what that one said, if "
            "anything, tells why; give the same command again, and what was finished is kept"
        ) from error
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Wait at the end of the block for all processes; an error that one of them meets inside is one of all.

    Nothing inside may wait for other processes. The lowest process that failed raises its own error and is to report
    it, the others raise `Elsewhere`.

    Raises:
        Elsewhere: another process failed.
    """
    if world_size() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as fault:
        error = fault
    messages = _failures("" if error is None else f"{error}" or type(error).__name__)
    if not messages:
        return
    first = min(messages)
    if error is not None and first == rank():
        raise error
    raise Elsewhere(f"process {first}: {messages[first]}") from error


def largest(*values: int) -> tuple[int, ...]:
    """The largest of each number over all processes."""
    return tuple(all_reduce_max(torch.tensor(values)).tolist()) if world_size() > 1 else values


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


def gather_rows(tensor: Tensor) -> Tensor:
    """Rows of all processes, in their order; differentiable.

    The gradient of a row adds up what all processes say of it.

    Args:
        tensor: with as many rows on every process.
    """
    return _GatherRows.apply(tensor) if world_size() > 1 else tensor


def barrier() -> None:
    """Wait for all processes."""
    if is_initialized():
        dist.barrier()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:  # noqa: ARG004
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return all_reduce_sum(gradients[0].contiguous()).chunk(world_size())[rank()]


def _failures(message: str) -> dict[int, str]:
    """What went wrong, by the number of the process; the messages travel only if there are any."""
    if not largest(int(bool(message)))[0]:
        return {}
    text = message.encode()[:_LONGEST_MESSAGE]
    own = torch.zeros(_LONGEST_MESSAGE, dtype=torch.uint8)
    own[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else own[:0]
    rows = gather_rows(own[None]).tolist()
    texts = {number: bytes(row).rstrip(b"\0").decode(errors="replace") for number, row in enumerate(rows)}
    return {number: text for number, text in texts.items() if text}
