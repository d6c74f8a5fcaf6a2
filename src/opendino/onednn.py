# SPDX-License-Identifier: Apache-2.0
"""Matrix products on a CPU by oneDNN where a short trial shows that they are faster than PyTorch's own way.

In float32, PyTorch's own way is MKL, which runs at half speed on processors that are not Intel's; in bfloat16 it is
oneDNN already, and what is left to gain is an activation in the same pass. The functions behind this file are
PyTorch's, but private: a trial asks whether they are there, right and not slower, and callers take the plain way where
they are not. Where numbers have to be the same in every process (`product`, `fast.optimize.fast_copy`) a trial asks
whether they are there and right alone (`available`); a run asks once whether its layers are faster, and keeps to it
(`train/ways.py`).
Used by `layers/packed_linear.py` (inference), `layers/fast_linear.py` (training) and `losses/_chunked.py`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int8, UInt8
from torch import Tensor

Activation = Literal["none", "gelu", "silu"]

ROWS = 256
"""Rows of a trial, and what the layout of packed weights is chosen for; images of 224 pixels have 257 tokens."""

FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "gelu": F.gelu, "silu": F.silu}
_NAMES: dict[Activation, tuple[str, str]] = {"none": ("none", ""), "gelu": ("gelu", "none"), "silu": ("swish", "")}
_NOISE = 1.1  # a trial's error on a busy machine: what looks slower by less is taken all the same
_TRIALS = threading.Lock()
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def pack(weight: Float[Tensor, "F D"]) -> Tensor:
    """A weight in the layout that oneDNN reads fastest; it is opaque, and fit for `linear` alone."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)


def linear(
    x: Float[Tensor, "*rows D"], weight: Tensor, bias: Float[Tensor, " F"] | None, activation: Activation = "none"
) -> Float[Tensor, "*rows F"]:
    """activation(x weight^T + bias), without a gradient.

    Args:
        x: any strides; what is not contiguous is copied.
        weight: [F, D] of any strides, or from `pack`.
        bias: of the type of `x`.
        activation: in the same pass over the output.
    """
    if x.numel() == 0:  # no rows, or sums of nothing; oneDNN refuses both
        return x.new_zeros(*x.shape[:-1], weight.shape[0])
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, _NAMES[activation][0], [], _NAMES[activation][1])


def product(a: Float[Tensor, "n k"], b: Float[Tensor, "m k"]) -> Float[Tensor, "n m"]:
    """Product of `a` and `b` transposed, without a gradient; any strides.

    By oneDNN in float32 on a CPU, where it is there: no trial of speed, whose answer may change from one process to the
    next, and with it the last bits of a run that goes on.
    """
    if a.device.type == "cpu" and a.dtype == torch.float32 and available():
        return linear(a, b, None)
    return a @ b.t()


def pack_int8(weight: Int8[Tensor, "F D"]) -> Tensor:
    """8-bit weights in the layout that oneDNN reads fastest; it is opaque, and fit for `linear_int8` alone."""
    # packed in place of what it is given
    return torch.ops.onednn.qlinear_prepack(weight.clone(), [ROWS, weight.shape[1]])


def linear_int8(
    x: UInt8[Tensor, "rows D"], zero: int, weight: Tensor, scales: Float32[Tensor, " F"]
) -> Float32[Tensor, "rows F"]:
    """(x - zero) weight^T, output by output times its scale; sums are exact.

    Args:
        x: unsigned; signed inputs would take a path without vectors.
        zero: what stands for zero among the inputs.
        weight: from `pack_int8`.
        scales: of the weights.
    """
    of_weights = torch.zeros(len(scales), dtype=torch.int32)
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero, weight, scales, of_weights, None, 1.0, 0, torch.float32, "none", [], ""
    )


@lru_cache(maxsize=1)
def int8_available() -> bool:
    """Whether oneDNN's 8-bit products are there and exact, and this processor has instructions for them."""
    features = getattr(torch.cpu, "get_capabilities", dict)()
    if not any(features.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
        return False
    # the largest there is: where 16-bit sums are in between, it runs over
    x, weight = torch.full((2, 64), 255, dtype=torch.uint8), torch.full((3, 64), 127, dtype=torch.int8)
    weight[1] = -127
    try:
        found = linear_int8(x, 0, pack_int8(weight), torch.ones(3))
    except (RuntimeError, AttributeError, NotImplementedError):  # another PyTorch, or one without oneDNN
        return False
    return torch.equal(found, x.float() @ weight.float().t())


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether oneDNN's float32 products are there and right."""
    a, b = torch.arange(12.0).view(3, 4), torch.arange(20.0).view(4, 5).t()
    try:
        with torch.no_grad():
            return torch.equal(linear(a, b, None), a @ b.t())
    except (RuntimeError, AttributeError, NotImplementedError):  # another PyTorch, or one without oneDNN
        return False


def pays(in_dim: int, out_dim: int, dtype: torch.dtype, activation: Activation = "none") -> bool:
    """Whether oneDNN is there for a linear layer, right, and not slower than the plain way here.

    Args:
        in_dim: width of the input.
        out_dim: width of the output.
        dtype: float32 or bfloat16; for any other the answer is no.
        activation: what follows.
    """
    return dtype in _CLOSE and _trial(in_dim, out_dim, dtype, activation)


@lru_cache(maxsize=256)
def _trial(in_dim: int, out_dim: int, dtype: torch.dtype, activation: Activation) -> bool:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        x, weight = (torch.randn(rows, in_dim, generator=generator).to(dtype) for rows in (ROWS, out_dim))
        bias = torch.randn(out_dim, generator=generator).to(dtype)
        try:
            packed = pack(weight)
            ways = (
                lambda: linear(x, packed, bias, activation),
                lambda: FUNCTIONS[activation](F.linear(x, weight, bias)),
            )
            found, wanted = (way().float() for way in ways)
        except (RuntimeError, AttributeError, NotImplementedError):  # another PyTorch, or one without oneDNN
            return False
        if not (wanted - found).abs().max() <= _CLOSE[dtype] * wanted.abs().max():  # nor where it is no number
            return False
        new, old = seconds_of(ways)
        return new < _NOISE * old


def seconds_of(ways: Sequence[Callable[[], object]], rounds: int = 5) -> list[float]:
    """Processor time of some ways to do a thing, on one thread: the least of a few runs of all in turn.

    Others at work on the machine stretch wall time by chance, and threads that wait for each other use up the
    processor; on one thread, its own clock gives the same answer beside them. PyTorch's number of threads is the whole
    process's: a thread that computes for the first time meanwhile keeps to one.
    """
    times: list[list[float]] = [[] for _ in ways]
    with _TRIALS:  # a second trial would take the one thread of the first for the process's number, and leave it so
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for _ in range(rounds):
                for way, seconds in zip(ways, times, strict=True):
                    begun = time.thread_time()
                    way()
                    seconds.append(time.thread_time() - begun)
        finally:
            torch.set_num_threads(threads)
    return [min(seconds) for seconds in times]
