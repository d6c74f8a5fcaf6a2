# SPDX-License-Identifier: Apache-2.0
"""Linear layers on a CPU by oneDNN, their weights laid out once, where a short trial shows that they are faster.

In float32, PyTorch's own way is MKL, which runs at half speed on processors that are not Intel's; in bfloat16 what is
left to gain is the GELU behind the product. The functions that do it are PyTorch's, but private: `pays` asks each time
whether they are there, right and not slower, and takes the plain way where they are not. Used by `fast/block.py`.
"""

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opendino.errors import ModelError

Activation = Literal["none", "gelu", "silu"]

_ACTIVATIONS: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "none": ("none", "", lambda x: x),
    "gelu": ("gelu", "none", F.gelu),
    "silu": ("swish", "", F.silu),
}
_ROWS = 256  # of the trial, and what the layout of the weights is chosen for; published models have 257 tokens
_NOISE = 1.1  # a trial's error on a busy machine: what looks slower by less is taken all the same
_CLOSE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


class PackedLinear(nn.Module):
    """A linear layer for inference, with GELU behind it if wanted.

    Args:
        weight: [F, D]; copied in `dtype`.
        bias: [F], or None.
        dtype: of the product; inputs must have it.
        activation: "none", exact "gelu" or "silu" behind the layer, in the same pass over the output.
        packed: by oneDNN or plainly; None lets a trial choose.
    """

    def __init__(
        self,
        weight: Float[Tensor, "F D"],
        bias: Float[Tensor, " F"] | None,
        dtype: torch.dtype,
        *,
        activation: Activation = "none",
        packed: bool | None = None,
    ) -> None:
        super().__init__()
        wide, deep = weight.shape
        self.activation = activation
        on_cpu = weight.device.type == "cpu"
        self.packed = on_cpu and (pays(deep, wide, dtype, activation) if packed is None else packed)
        weight = weight.detach().to(dtype)
        # no buffers: a packed weight can be neither moved nor written to a file
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS) if self.packed else weight.clone()
        self.bias = None if bias is None else bias.detach().to(dtype).clone()

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens F"]:
        """Transform each token by itself."""
        name, algorithm, function = _ACTIVATIONS[self.activation]
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)
        return function(F.linear(x, self.weight, self.bias))

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:  # noqa: ARG002
        raise ModelError("an optimized model cannot be saved; save the model that it was made from")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        moved = fn(self.weight.new_zeros(1) if not self.packed else torch.zeros(1, dtype=self.weight.dtype))
        if moved.device != self.weight.device or moved.dtype != self.weight.dtype:
            raise ModelError(
                f"an optimized model stays on {self.weight.device} in {self.weight.dtype}; move or convert the model "
                "it was made from, and optimize that"
            )
        return super()._apply(fn, recurse)


def pays(in_dim: int, out_dim: int, dtype: torch.dtype, activation: Activation = "none") -> bool:
    """Whether oneDNN with packed weights is there for a shape, right, and not slower than the plain way here.

    Args:
        in_dim: width of the input.
        out_dim: width of the output.
        dtype: float32 or bfloat16; for any other the answer is no.
        activation: what follows.
    """
    return dtype in _CLOSE and _trial(in_dim, out_dim, dtype, activation, torch.get_num_threads())


@lru_cache(maxsize=256)
def _trial(in_dim: int, out_dim: int, dtype: torch.dtype, activation: Activation, _threads: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, in_dim, generator=generator).to(dtype) for rows in (_ROWS, out_dim))
    bias = torch.randn(out_dim, generator=generator).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        plain = PackedLinear(weight, bias, dtype, activation=activation, packed=False)
        try:
            packed = PackedLinear(weight, bias, dtype, activation=activation, packed=True)
            wanted, found = plain(x).float(), packed(x).float()
        except (RuntimeError, AttributeError, NotImplementedError):  # another PyTorch, or one without oneDNN
            return False
        if (wanted - found).abs().max() > _CLOSE[dtype] * wanted.abs().max():
            return False
        new, old = seconds_of((lambda: packed(x), lambda: plain(x)))
        return new < _NOISE * old


def seconds_of(ways: Sequence[Callable[[], object]], rounds: int = 5) -> list[float]:
    """Processor time of some ways to do a thing: the fastest of a few runs of all in turn."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, seconds in zip(ways, times, strict=True):
            begun = time.process_time()  # a busy machine stretches wall time by chance
            way()
            seconds.append(time.process_time() - begun)
    return [min(seconds) for seconds in times]
