# SPDX-License-Identifier: Apache-2.0
"""Linear layers that learn in float32 on a CPU, their three products by oneDNN; `use_fast_linears` puts them in.

The parameters stay what and where they are, so optimizers, checkpoints and copies see no difference.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from opendino import onednn


class FastLinear(nn.Linear):
    """`nn.Linear` whose products of float32 on a CPU, forward and backward, are oneDNN's."""

    def forward(self, input: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens F"]:
        """Transform each token by itself."""
        x = input
        plain = x.ndim < 2 or x.dtype != torch.float32 or x.device.type != "cpu" or self.weight.dtype != torch.float32
        if plain or torch.is_autocast_enabled("cpu") or torch.jit.is_tracing() or torch.compiler.is_compiling():
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
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # pyrefly: ignore[bad-override]
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
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
