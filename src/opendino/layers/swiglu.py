# SPDX-License-Identifier: Apache-2.0
"""Feed-forward layer with a SiLU gate, as in ViT-g; its plain sister is in `mlp.py`."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def swiglu_hidden_dim(hidden_dim: int) -> int:
    """Two thirds of the plain layer's hidden width, rounded up to a multiple of 8.

    The gate adds a third matrix; two thirds of the width keep the number of parameters.

    Source: official `layers/swiglu_ffn.py`: 6144 -> 4096 (ViT-g), 4096 -> 2736 (ViT-L).
    """
    return (int(hidden_dim * 2 / 3) + 7) // 8 * 8


class SwiGLU(nn.Module):
    """`w3(silu(gate) * value)`, where one fused layer `w12` makes gate and value, in this order.

    Args:
        dim: width D of the tokens.
        hidden_dim: width the plain layer would have (4 D); the gated width follows by `swiglu_hidden_dim`.
        bias: whether both layers have a bias.

    Source: official `layers/swiglu_ffn.py`; keys `w12` [2H, D], `w3` [D, H].
    """

    def __init__(self, dim: int, hidden_dim: int, bias: bool = True) -> None:
        super().__init__()
        hidden_dim = swiglu_hidden_dim(hidden_dim)
        self.w12 = nn.Linear(dim, 2 * hidden_dim, bias=bias)
        self.w3 = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """Transform each token by itself."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)
