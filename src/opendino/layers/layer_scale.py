# SPDX-License-Identifier: Apache-2.0
"""One learned factor a channel on a residual branch; read `block.py` next."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor that starts at `init_value`.

    Args:
        dim: width D of the tokens.
        init_value: 1e-5 in published training recipes; irrelevant where weights are loaded.

    Source: official `layers/layer_scale.py`; key `gamma`.
    """

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.init_value = init_value
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every factor to its start value."""
        nn.init.constant_(self.gamma, self.init_value)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """Scale channels."""
        return x * self.gamma
