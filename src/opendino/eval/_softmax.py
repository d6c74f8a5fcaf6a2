# SPDX-License-Identifier: Apache-2.0
"""Softmax regression with an L2 penalty: the convex problem behind `logreg.py`, solved in coordinates made for it.

In the principal axes of the features the problem is the same one, for turning changes no length; but there its
curvature is nearly diagonal and known beforehand. Measured along each axis in units of that curvature, L-BFGS comes to
the optimum in tens of passes over the features where plain coordinates take hundreds.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

_ROWS = 512  # at once, so that they are still in the cache when they are read again for the gradient
_PAIRS = 20  # steps that L-BFGS remembers


class Axes(NamedTuple):
    """Principal axes of some features.

    Attributes:
        mean: of the features, the origin.
        vectors: axes as columns, orthonormal.
        variances: of the features along each axis.
    """

    mean: Float[np.ndarray, " D"]
    vectors: Float[np.ndarray, "D D"]
    variances: Float[np.ndarray, " D"]

    def turn(self, x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
        """Features in these axes."""
        return (x - self.mean) @ self.vectors


class Fit(NamedTuple):
    """Where a fit ended.

    Attributes:
        weights: of each class, the intercept last.
        done: whether the tolerance was met; False where the number of iterations ended it.
        passes: over the features.
    """

    weights: Float[np.ndarray, "K D1"]
    done: bool
    passes: int

    def predict(self, x: Float[np.ndarray, "m D"]) -> Int[np.ndarray, " m"]:
        """Position of the most probable class."""
        return (x @ self.weights[:, :-1].T + self.weights[:, -1]).argmax(axis=1)


def principal_axes(x: Float[np.ndarray, "n D"]) -> Axes:
    """Axes along which the features do not vary together."""
    mean = x.mean(axis=0)
    variances, vectors = np.linalg.eigh(x.T @ x / len(x) - np.outer(mean, mean))
    return Axes(mean, vectors, np.maximum(variances, 0.0))


def fit(
    x: Float[np.ndarray, "n D"],
    y: Int[np.ndarray, " n"],
    classes: int,
    C: float,
    variances: Float[np.ndarray, " D"],
    start: Float[np.ndarray, "K D1"] | None = None,
    *,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
) -> Fit:
    """Minimise C times the summed cross-entropy plus half the squared weights; intercepts are free.

    Args:
        x: features in their principal axes, float64.
        y: class of each row, 0 to `classes` - 1.
        classes: their number. Two share one vector of weights, as is usual.
        C: inverse strength of the penalty.
        variances: of the features, about; they decide how fast the fit is, not where it ends.
        start: weights to begin with; by default 0.
        tolerance: largest component of the mean loss's gradient, in units of the curvature's root, at the end.
        max_iterations: at which the fit ends anyway.
    """
    from scipy.optimize import minimize

    # Two vectors w/2 and -w/2 have half the squared length of w.
    penalty = (2.0 if classes == 2 else 1.0) / (C * len(x))
    # The curvature at equal probabilities, where every fit begins; elsewhere it is smaller, by much the same factor.
    share = (1 - 1 / classes) / classes
    units = 1 / np.sqrt(share * np.append(variances, 1.0) + np.append(np.full(len(variances), penalty), 0.0))

    def loss(flat: Float[np.ndarray, " P"]) -> tuple[float, Float[np.ndarray, " P"]]:
        value, gradient = _objective(flat.reshape(classes, -1) * units, x, y, penalty)
        return value, (gradient * units).ravel()

    begin = np.zeros((classes, len(units))) if start is None else start / units
    # Only as many threads as torch has been given: more of them wait for each other where other work runs beside.
    options = {"gtol": tolerance, "ftol": 0.0, "maxiter": max_iterations, "maxcor": _PAIRS}
    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        found = minimize(loss, begin.ravel(), jac=True, method="L-BFGS-B", options=options)
    # 1 is the limit of iterations; 2 a search along a line that rounding ends, which is as far as one gets.
    return Fit(found.x.reshape(classes, -1) * units, found.status != 1, int(found.nfev))


def _objective(
    weights: Float[np.ndarray, "K D1"], x: Float[np.ndarray, "n D"], y: Int[np.ndarray, " n"], penalty: float
) -> tuple[float, Float[np.ndarray, "K D1"]]:
    """Mean cross-entropy with the penalty, and its gradient."""
    slopes, intercepts = weights[:, :-1], weights[:, -1]
    value = 0.5 * penalty * float((slopes**2).sum())
    gradient = np.concatenate([penalty * slopes, np.zeros((len(weights), 1))], axis=1)
    for begin in range(0, len(x), _ROWS):
        rows, truth = x[begin : begin + _ROWS], y[begin : begin + _ROWS]
        logits = rows @ slopes.T + intercepts
        logits -= logits.max(axis=1, keepdims=True)
        right = logits[np.arange(len(rows)), truth]
        shares = np.exp(logits, out=logits)
        totals = shares.sum(axis=1, keepdims=True)
        value += float((np.log(totals[:, 0]) - right).sum()) / len(x)
        shares /= totals
        shares[np.arange(len(rows)), truth] -= 1
        shares /= len(x)
        gradient[:, :-1] += shares.T @ rows
        gradient[:, -1] += shares.sum(axis=0)
    return value, gradient
