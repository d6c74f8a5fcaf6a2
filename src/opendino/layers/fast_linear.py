# SPDX-License-Identifier: Apache-2.0
"""Linear layers that learn in float32 on a CPU, their three products by oneDNN; `use_fast_linears` puts them in.

The parameters stay what and where they are, so optimizers, checkpoints and copies see no difference.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from opendino import onednn
from opendino.layers.followed import is_followed

Products = Literal["auto", "onednn", "torch"]
"""Whose products of float32 linear layers on a CPU take; "auto" is for a trial to say."""

_TRIAL_ROWS = 512
_CLOSE = 1e-4  # of their norm
_CLEARLY = 1.2


class FastLinear(nn.Linear):
    """`nn.Linear` whose products of float32 on a CPU, forward and backward, are oneDNN's."""

    def forward(self, input: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens F"]:
        """Transform each token by itself."""
        x = input
        plain = x.ndim < 2 or x.dtype != torch.float32 or x.device.type != "cpu" or self.weight.dtype != torch.float32
        if plain or torch.is_autocast_enabled("cpu") or is_followed():
            return F.linear(x, self.weight, self.bias)
        return _Linear.apply(x.flatten(0, -2), self.weight, self.bias).unflatten(0, x.shape[:-1])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  torch's own
        x: Float32[Tensor, "rows D"],
        weight: Float32[Tensor, "F D"],
        bias: Float32[Tensor, " F"] | None,
    ) -> Float32[Tensor, "rows F"]:
        ctx.save_for_backward(x, weight)
        return onednn.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # pyrefly: ignore[bad-override]
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradient is to be differentiated: by operations that can be
            of_x, of_weight = grad @ weight if for_x else None, grad.t() @ x if for_weight else None
            return of_x, of_weight, grad.sum(dim=0) if for_bias else None
        return (
            onednn.linear(grad, weight.t(), None) if for_x else None,
            _weight_grad(grad, x) if for_weight else None,
            grad.sum(dim=0) if for_bias else None,
        )


def _weight_grad(grad: Float32[Tensor, "rows F"], x: Float32[Tensor, "rows D"]) -> Float32[Tensor, "F D"]:
    # The first factor is copied to have its rows side by side: let it be the narrower one.
    if grad.shape[1] > x.shape[1]:
        return onednn.linear(x.t(), grad.t(), None).t()
    return onednn.linear(grad.t(), x.t(), None)


def try_linears(dim: int, hidden_dim: int) -> tuple[bool, float]:
    """Whether a linear layer learns faster by oneDNN on this CPU, by a short trial of both ways in turn.

    Args:
        dim: width of the input.
        hidden_dim: width of the output.

    Returns:
        False where PyTorch's own way is faster by a fifth, so that chance hardly ever decides, or oneDNN's is not there
        or strays from it; and the time of oneDNN's over that of PyTorch's, infinite where it was not taken.
    """
    if not onednn.available():
        return False, math.inf
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, dim, generator=generator) for rows in (_TRIAL_ROWS, hidden_dim))
    bias = torch.randn(hidden_dim, generator=generator)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        ways = [partial(_both_passes, way, x, weight, bias) for way in (_Linear.apply, F.linear)]
        for found, wanted in zip(*(way() for way in ways), strict=True):
            if not (found - wanted).norm() <= _CLOSE * wanted.norm():
                return False, math.inf
        fast, plain = onednn.seconds_of(ways)
    ratio = fast / max(plain, 1e-9)
    return ratio < _CLEARLY, ratio


def _both_passes(way: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    """What a linear layer gives, and its gradients."""
    leaves = [one.detach().requires_grad_() for one in given]
    out = way(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, out.detach())]


def use_fast_linears(module: nn.Module) -> int:
    """Make `FastLinear`s of the plain linear layers in a module, in place, where oneDNN is there.

    Args:
        module: on a CPU, in float32; its parameters stay the same objects.

    Returns:
        How many layers changed.
    """
    changed = 0
    for layer in module.modules():
        if type(layer) is nn.Linear and onednn.available():
            layer.__class__ = FastLinear
            changed += 1
    return changed
