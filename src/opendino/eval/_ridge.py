# SPDX-License-Identifier: Apache-2.0
"""A linear classifier in closed form: least squares on the classes, its strength chosen by leaving one out.

Cheap enough to be fitted while a run goes on (`train/probe.py`): one product of the features with themselves, whatever
the number of strengths. `logreg.py` and `linear.py` are for figures to report.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties that are tried, in units of the features' mean variance."""


class Ridge(NamedTuple):
    """A fitted classifier.

    Attributes:
        weight: of each class.
        bias: of each class.
        strength: the penalty that was chosen, in units of the features' mean variance.
        loo_error: of each strength, the mean squared error on the image that was left out.
    """

    weight: Float[Tensor, "K F"]
    bias: Float[Tensor, " K"]
    strength: float
    loo_error: tuple[float, ...]

    def predict(self, x: Float[Tensor, "m F"]) -> Int[Tensor, " m"]:
        """The class with the largest value."""
        return (x.to(self.weight) @ self.weight.T + self.bias).argmax(dim=1)


def fit(
    x: Float[Tensor, "n F"], labels: Int[Tensor, " n"], classes: int, strengths: Sequence[float] = STRENGTHS
) -> Ridge:
    """Minimise the squared distance from the classes' indicators plus a penalty on the weights; biases are free.

    Args:
        x: features of two or more images; computed in float64.
        labels: 0 to `classes` - 1.
        classes: their number.
        strengths: penalties that are tried, in units of n times the features' mean variance.

    Source: Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", sections 3.4.1 and 7.10 (the error
        left out is the residual over one less the leverage).
    """
    x, truth = x.double(), F.one_hot(labels, classes).to(x.device).double()
    mean, share = x.mean(dim=0), truth.mean(dim=0)
    x, truth = x - mean, truth - share
    squares, axes = torch.linalg.eigh(x.T @ x)
    squares = squares.clamp(min=0)
    turned = x @ axes
    along = turned.T @ truth
    unit = max(float(squares.mean()), torch.finfo(torch.float64).tiny)  # constant features have no variance
    errors, lengths = [], turned.square()
    for strength in strengths:
        shrunk = 1 / (squares + strength * unit)
        residual = truth - turned @ (shrunk[:, None] * along)
        leverage = 1 / len(x) + lengths @ shrunk
        # A leverage of 1 is an image that alone decides its own value.
        errors.append(float((residual / (1 - leverage).clamp(min=1e-9)[:, None]).square().mean()))
    best = min(range(len(strengths)), key=errors.__getitem__)
    weight = (axes @ (along / (squares + strengths[best] * unit)[:, None])).T
    return Ridge(weight, share - weight @ mean, float(strengths[best]), tuple(errors))
