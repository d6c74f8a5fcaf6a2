# SPDX-License-Identifier: Apache-2.0
"""The spreading term: features are pushed from their nearest neighbour in the batch; read `centering.py` next."""

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from opendino.precision import full_float32

EPS = 1e-8
"""Guard of the norms and the logarithm; it is lost in half precision, so the term is computed in float32."""


def koleo_loss(cls: Float[Tensor, "B D"]) -> Float32[Tensor, ""]:
    """Minus the mean log distance of each feature to its nearest neighbour on the unit sphere.

    An untrained backbone says nearly the same of all images and starts high, at 5 to 10; the loss falls as features
    spread, and is negative where neighbours are farther than 1 apart.

    Args:
        cls: class tokens of one global crop of each image; computed in float32 whatever comes in, also under
            autocast. With fewer than two rows nobody has a neighbour: the loss is 0 and so is its gradient.

    Returns:
        The loss; finite for equal rows too, each of which counts as at distance `EPS * sqrt(D)`.

    Source: Sablayrolles et al. 2019, equation 2; official `loss/koleo_loss.py`.
    Differs: the official code keeps the dtype that comes in, and in float16 equal rows give infinity; for a batch of
        one it takes the distance of the row to itself.
    """
    if cls.shape[0] < 2:
        return cls.float().sum() * 0
    with torch.autocast(cls.device.type, enabled=False):
        unit = F.normalize(cls.float(), dim=-1, eps=EPS)
        distances = F.pairwise_distance(unit, unit[nearest(unit)], p=2, eps=EPS)
        return -torch.log(distances + EPS).mean()


@torch.no_grad()
def nearest(unit: Float32[Tensor, "B D"]) -> Int64[Tensor, " B"]:
    """Row number of each unit vector's nearest other, by the largest dot product."""
    with full_float32():  # near neighbours differ in the last bits
        dots = unit @ unit.T
    return dots.fill_diagonal_(-1).argmax(dim=1)
