# SPDX-License-Identifier: Apache-2.0
"""t-SNE for some hundreds of points, exact; the layout of `embedding.py`."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from opendino.view.pca import principal_axes

_STEPS, _EARLY = 500, 125


def tsne(features: Float[Tensor, "n D"], *, perplexity: float = 30.0, seed: int = 0) -> Float[Tensor, "n 2"]:
    """Places in the plane whose neighbourhoods are like those of the features, float64.

    Args:
        features: of any width; distances are those of unit vectors.
        perplexity: about the number of neighbours that count; at most a third of the points.
        seed: of the small noise that parts equal features.

    Source: van der Maaten and Hinton 2008; started from the first two principal components, as in Kobak and Berens
        2019, with early exaggeration 12 and learning rate n / 12.
    """
    x = torch.nn.functional.normalize(features.double(), dim=1)
    n = len(x)
    joint = affinities(torch.cdist(x, x).square(), min(perplexity, max((n - 1) / 3, 1.0)))
    y = principal_axes(x, 2)(x)
    y = 1e-2 * y / y[:, 0].std().clamp(min=1e-12)
    y = y + 1e-4 * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    velocity, gains = torch.zeros_like(y), torch.ones_like(y)
    rate = max(n / 12, 10.0)
    for step in range(_STEPS):
        early = step < _EARLY
        gradient = _gradient(joint * (12.0 if early else 1.0), y)
        same = gradient.sign() == velocity.sign()
        gains = torch.where(same, gains * 0.8, gains + 0.2).clamp(min=0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        y = y + velocity
    return y - y.mean(dim=0)


def _gradient(joint: Float[Tensor, "n n"], y: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    kernel = 1 / (1 + torch.cdist(y, y).square())
    kernel.fill_diagonal_(0)
    pull = (joint - kernel / kernel.sum()) * kernel
    return 4 * (pull.sum(dim=1, keepdim=True) * y - pull @ y)


def affinities(squared: Float[Tensor, "n n"], perplexity: float) -> Float[Tensor, "n n"]:
    """Symmetric probabilities of pairs: a Gaussian around each point, as wide as gives it the perplexity.

    Args:
        squared: distances.
        perplexity: exponential of each row's entropy.
    """
    n = len(squared)
    outside = squared.masked_fill(torch.eye(n, dtype=torch.bool), math.inf)
    # The nearest one at zero keeps the exponentials in range.
    outside = outside - outside.amin(dim=1, keepdim=True)
    low, high = torch.full((n, 1), -30.0, dtype=squared.dtype), torch.full((n, 1), 30.0, dtype=squared.dtype)
    wanted = math.log(perplexity)
    for _ in range(60):
        middle = (low + high) / 2  # of the logarithm of the precision
        rows = torch.softmax(-outside * middle.exp(), dim=1)
        entropy = torch.special.entr(rows).sum(dim=1, keepdim=True)
        low, high = torch.where(entropy > wanted, middle, low), torch.where(entropy > wanted, high, middle)
    rows = torch.softmax(-outside * ((low + high) / 2).exp(), dim=1)
    return (rows + rows.T) / (2 * n)
