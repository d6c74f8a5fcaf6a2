# SPDX-License-Identifier: Apache-2.0
"""Feed-forward layer with GELU; its gated sister is in `swiglu.py`."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, Linear.

    Args:
        dim: width D of the tokens.
        hidden_dim: width between the two layers, 4 D in all published models.
        bias: whether both layers have a bias.

    Source: official `layers/mlp.py`; keys `fc1`, `fc2`.
    """

    def __init__(self, dim: int, hidden_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """Transform each token by itself."""
        return self.fc2(F.gelu(self.fc1(x)))
