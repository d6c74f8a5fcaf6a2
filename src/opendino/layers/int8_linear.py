# SPDX-License-Identifier: Apache-2.0
"""A linear layer for inference whose products are of 8-bit integers; `fast/block.py` takes it for `dtype="int8"`."""

import torch
from jaxtyping import BFloat16, Float, Float32
from torch import Tensor

from opendino import onednn
from opendino.layers.fixed import Fixed

ROWS_AT_ONCE = 130
"""Rows that go through the layer together: what lies between its passes stays in the cache."""

GELU_FLOOR = -0.17
"""Below anything that GELU gives; its minimum is -0.16997."""

_MIDDLE = 128
_TINY = 1e-12


class Int8Linear(Fixed):
    """A linear layer on 8-bit weights and 8-bit inputs, with a scale for each output and each row.

    A row's own largest value is its range, whatever else is in the batch, so no image changes another's numbers.
    Sums are exact 32-bit integers. The error is about one hundredth of a row's deviation.

    Args:
        weight: [F, D] on a CPU; rounded to 127 steps of each output's largest weight.
        bias: [F], or None.
        activation: "none", exact "gelu" or "silu" behind the layer.
        floor: a number that no input is below, 0 or less; inputs are then unsigned, with twice the resolution.
    """

    def __init__(
        self,
        weight: Float[Tensor, "F D"],
        bias: Float[Tensor, " F"] | None,
        *,
        activation: onednn.Activation = "none",
        floor: float | None = None,
    ) -> None:
        super().__init__()
        weight = weight.detach().float()
        self.activation: onednn.Activation = activation
        self.floor = floor
        # no buffers: what oneDNN packs can be neither moved nor written to a file, see `fixed.py`
        self.scales = weight.abs().amax(dim=1).clamp_(min=_TINY) / 127
        steps = torch.round(weight / self.scales[:, None]).to(torch.int8)
        self.bias = torch.zeros(len(weight)) if bias is None else bias.detach().float().clone()
        if floor is not None:  # (x - floor) W = x W - floor W 1
            self.bias += floor * self.scales * steps.float().sum(dim=1)
        self.packed = onednn.pack_int8(steps)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> BFloat16[Tensor, "*tokens F"]:
        """Transform each token by itself."""
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty(len(rows), len(self.bias), dtype=torch.bfloat16)
        parts = max(-(-len(rows) // ROWS_AT_ONCE), 1)  # of nearly equal size
        for part, into in zip(rows.chunk(parts), out.chunk(parts), strict=True):
            into.copy_(self._few(part.float()))
        return out.view(*x.shape[:-1], len(self.bias))

    def _few(self, x: Float32[Tensor, "rows D"]) -> Float32[Tensor, "rows F"]:
        if self.floor is None:
            steps, zero = (x.abs().amax(dim=1, keepdim=True) / 127).clamp_(min=_TINY), _MIDDLE
            q = (x / steps).add_(_MIDDLE + 0.5).to(torch.uint8)
        else:
            steps, zero = ((x.amax(dim=1, keepdim=True) - self.floor) / 255).clamp_(min=_TINY), 0
            q = ((x - self.floor) / steps).add_(0.5).to(torch.uint8)
        product = onednn.linear_int8(q, zero, self.packed, self.scales)
        return onednn.FUNCTIONS[self.activation](product.mul_(steps).add_(self.bias))
