# SPDX-License-Identifier: Apache-2.0
"""The projection head: backbone output to prototype logits; the losses in `opendino.losses` read these."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opendino.config import check_numbers
from opendino.errors import ConfigError, ModelError
from opendino.onednn import product

HEAD_LIMITS = {
    "prototypes": (1, 2**27),
    "hidden_dim": (1, 2**20),
    "bottleneck_dim": (1, 2**20),
    "nlayers": (1, 100),
}
"""Smallest and largest sizes of a head; beyond them a setting is a slip of the pen."""


class Prototypes(nn.Module):
    """Linear layer without bias whose weight rows are a unit direction times a magnitude.

    Args:
        in_dim: width of the (unit) input.
        out_dim: prototypes K.

    Source: official `layers/dino_head.py`, weight_norm; keys `weight_g` [K, 1], `weight_v` [K, in_dim].
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.empty(out_dim, 1))
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Directions as PyTorch draws a linear layer, uniform in +-1/sqrt(in_dim); magnitudes one."""
        bound = self.weight_v.shape[1] ** -0.5
        nn.init.uniform_(self.weight_v, -bound, bound)
        nn.init.ones_(self.weight_g)

    def forward(self, x: Float[Tensor, "*rows in_dim"]) -> Float[Tensor, "*rows K"]:
        """Magnitude times cosine with every prototype, for unit `x`."""
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True))
        if x.ndim < 2 or torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or torch.jit.is_tracing():
            return F.linear(x, weight)
        return product(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])  # the teacher's, often the largest of all


class DINOHead(nn.Module):
    """MLP to a bottleneck, L2 normalisation, prototypes.

    Args:
        in_dim: width of the backbone's tokens.
        out_dim: prototypes K (65536 and 131072 in published recipes).
        hidden_dim: width of the MLP.
        bottleneck_dim: width before the prototypes.
        nlayers: linear layers of the MLP; with 1 it is a single layer and its key is `mlp`.

    Raises:
        ModelError: a size that cannot be built.

    Source: official `layers/dino_head.py`; keys `mlp.0 mlp.2 mlp.4 last_layer`.
    Differs: no batch norm, which official training refuses.
    """

    def __init__(
        self, in_dim: int, out_dim: int, hidden_dim: int = 2048, bottleneck_dim: int = 256, nlayers: int = 3
    ) -> None:
        super().__init__()
        sizes = {"prototypes": out_dim, "hidden_dim": hidden_dim, "bottleneck_dim": bottleneck_dim, "nlayers": nlayers}
        try:
            check_numbers("DINOHead", sizes, HEAD_LIMITS)
        except ConfigError as error:
            raise ModelError(str(error)) from None
        self.in_dim, self.out_dim = in_dim, out_dim
        widths = [in_dim, *[hidden_dim] * (nlayers - 1), bottleneck_dim]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1]) if nlayers > 1 else layers[0]
        self.last_layer = Prototypes(bottleneck_dim, out_dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Published start: truncated normal of 0.02 in the MLP, unit magnitudes on random prototypes."""
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer.reset_parameters()

    def forward(self, x: Float[Tensor, "*rows in_dim"]) -> Float[Tensor, "*rows K"]:
        """Prototype logits of tokens, each computed by itself."""
        return self.last_layer(self.bottleneck(x))

    def bottleneck(self, x: Float[Tensor, "*rows in_dim"]) -> Float[Tensor, "*rows bottleneck_dim"]:
        """What the prototypes are compared with: unit vectors."""
        x = self.mlp(x)
        # 1e-12 is zero in float16
        return F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)
