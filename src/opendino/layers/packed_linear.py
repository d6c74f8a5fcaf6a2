# SPDX-License-Identifier: Apache-2.0
"""A linear layer for inference whose weights are laid out once; `fast/block.py` is made of these."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from opendino import onednn
from opendino.layers.fixed import Fixed


class PackedLinear(Fixed):
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
        # no buffers: a packed weight can be neither moved nor written to a file, see `fixed.py`
        self.weight = onednn.pack(weight) if packed else weight.clone()
        self.bias = None if bias is None else bias.detach().to(dtype).clone()

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens F"]:
        """Transform each token by itself."""
        if self.packed:
            return onednn.linear(x, self.weight, self.bias, self.activation)
        return onednn.FUNCTIONS[self.activation](F.linear(x, self.weight, self.bias))
