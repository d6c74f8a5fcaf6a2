# SPDX-License-Identifier: Apache-2.0
"""A linear layer for inference whose weights are laid out once; `fast/block.py` is made of these."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opendino import onednn
from opendino.errors import ModelError


class PackedLinear(nn.Module):
    """A linear layer for inference, with an activation behind it if wanted.

    Args:
        weight: [F, D]; copied in `dtype`.
        bias: [F], or None.
        dtype: of the product; inputs must have it.
        activation: "none", exact "gelu" or "silu" behind the layer, in the same pass over the output.
        packed: by oneDNN or plainly, on other devices plainly; None lets a trial choose.
    """

    def __init__(
        self,
        weight: Float[Tensor, "F D"],
        bias: Float[Tensor, " F"] | None,
        dtype: torch.dtype,
        *,
        activation: onednn.Activation = "none",
        packed: bool | None = None,
    ) -> None:
        super().__init__()
        wide, deep = weight.shape
        self.activation: onednn.Activation = activation
        on_cpu = weight.device.type == "cpu"
        self.packed = packed = on_cpu and (onednn.pays(deep, wide, dtype, activation) if packed is None else packed)
        weight = weight.detach().to(dtype)
        # no buffers: a packed weight can be neither moved nor written to a file
        self.weight = onednn.pack(weight) if packed else weight.clone()
        self.bias = None if bias is None else bias.detach().to(dtype).clone()

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens F"]:
        """Transform each token by itself."""
        if self.packed:
            return onednn.linear(x, self.weight, self.bias, self.activation)
        return onednn.FUNCTIONS[self.activation](F.linear(x, self.weight, self.bias))

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:  # noqa: ARG002
        raise ModelError("an optimized model cannot be saved; save the model that it was made from")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PackedLinear":
        moved = fn(torch.zeros(1, dtype=self.weight.dtype, device=self.weight.device))
        if moved.device != self.weight.device or moved.dtype != self.weight.dtype:
            raise ModelError(
                f"an optimized model stays on {self.weight.device} in {self.weight.dtype}; move or convert the model "
                "it was made from, and optimize that"
            )
        return super()._apply(fn, recurse)
