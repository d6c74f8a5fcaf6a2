# SPDX-License-Identifier: Apache-2.0
"""L2 logistic regression on frozen features, in float64: how much of the classes is linearly there.

The strength of the penalty is chosen on a held-out tenth of the training images, then the classifier is fitted again
on all of them and measured once. The grid is walked from strong to weak penalty, each fit starting where the last one
ended: the optimum of a convex problem does not depend on the start, the time does.

Read next: `_softmax.py`, `_features.py`, `_data.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from opendino.errors import ConfigError, DataError
from opendino.eval._data import LabelledConfig, LabelledFeatures, measure_pair
from opendino.eval._features import FeatureConfig, FeatureKind
from opendino.eval._results import Results
from opendino.eval._softmax import Fit, fit, principal_axes
from opendino.eval.adapters import Backbone


@dataclass(frozen=True)
class RegressionConfig:
    """How the classifier is chosen and fitted.

    Attributes:
        feature: CLS, mean of the patches, or both side by side; un-normalised.
        standardize: give every feature mean 0 and standard deviation 1 over the training images; the published
            protocol does not.
        values: how many inverse strengths C are tried, evenly spaced in the exponent.
        exponents: smallest and largest exponent of 10 of C.
        holdout: share of the training images on which C is chosen.
        seed: of that split.
        tolerance: largest component of the mean loss's gradient at which a fit is done; see `_softmax.py`.
        max_iterations: at which a fit ends anyway, and says so.
    """

    feature: FeatureKind = "cls"
    standardize: bool = False
    values: int = 45
    exponents: tuple[float, float] = (-6.0, 5.0)
    holdout: float = 0.1
    seed: int = 0
    tolerance: float = 1e-5
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        if self.values < 1:
            raise ConfigError(f"logreg.values = {self.values}: give 1 or more values of C")
        if not 0 < self.holdout < 1:
            raise ConfigError(f"logreg.holdout = {self.holdout}: give a share between 0 and 1, published is 0.1")


@dataclass(frozen=True)
class LogregConfig:
    """Settings of `opendino eval logreg`."""

    data: LabelledConfig = field(default_factory=LabelledConfig)
    logreg: RegressionConfig = field(default_factory=RegressionConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)


def run(
    backbone: Backbone,
    config: LogregConfig,
    *,
    out: Path | None = None,
    source: Mapping[str, object] | None = None,
) -> Results:
    """Measure a backbone on a labelled pair of data sets; every process of a group calls it.

    Args:
        backbone: moved to `config.features.device`.
        config: data, classifier and features.
        out: folder for the JSON file, or None.
        source: where the model came from, for the record.

    Raises:
        ConfigError: a setting that does not fit the data.
        DataError: a part cannot be opened, has no labels, or has a single class.
    """
    kind = config.logreg.feature

    def figures(pair: LabelledFeatures) -> tuple[dict[str, float], list[str]]:
        train, val = (part.select(kind, normalize=False) for part in (pair.train, pair.val))
        return evaluate(train, pair.train_labels, val, pair.val_labels, config.logreg)

    return measure_pair("logreg", backbone, config, figures, patches=kind != "cls", out=out, source=source)


def evaluate(
    train: Float[Tensor, "n D"],
    train_labels: Int[Tensor, " n"],
    val: Float[Tensor, "m D"],
    val_labels: Int[Tensor, " m"],
    config: RegressionConfig = RegressionConfig(),
) -> tuple[dict[str, float], list[str]]:
    """Choose C, fit on all training features, measure on the held-out ones.

    Returns:
        `top1` and `mean_per_class` accuracy in percent, the chosen `C` and its accuracy on the split,
        `top1_split`; and notes.

    Raises:
        DataError: the training images, or the part that C is chosen with, have a single class.

    Source: official `eval/log_regression.py`; paper, section 7.1.
    Differs: L-BFGS along the principal axes, see `_softmax.py`; the objective is the same, and weak penalties, where
        plain L-BFGS needs thousands of steps, converge in tens.
    """
    x, y = train.double().numpy(), train_labels.numpy()
    x_val, y_val = val.double().numpy(), val_labels.numpy()
    if config.standardize:
        mean, std = x.mean(axis=0), x.std(axis=0)
        std[std == 0] = 1.0  # a constant feature stays constant
        x, x_val = (x - mean) / std, (x_val - mean) / std
    classes, places = np.unique(y, return_inverse=True)
    fitted, held_out = split(len(x), config.holdout, config.seed)
    if min(len(classes), len(np.unique(y[fitted]))) < 2:
        raise DataError(f"logistic regression needs two or more classes among {len(fitted)} training images, got one")
    axes, grid = principal_axes(x), strengths(config)
    x, x_val = axes.turn(x), axes.turn(x_val)
    solve = partial(
        fit,
        classes=len(classes),
        variances=axes.variances,
        tolerance=config.tolerance,
        max_iterations=config.max_iterations,
    )
    x_fitted, places_fitted, fits = x[fitted], places[fitted], []
    for C in grid:
        fits.append(solve(x_fitted, places_fitted, C=C, start=fits[-1].weights if fits else None))
    scores = [float((one.predict(x[held_out]) == places[held_out]).mean()) for one in fits]
    # The first best is the strongest penalty among equals.
    best = int(np.argmax(scores))
    C = grid[best]
    final = solve(x, places, C=C, start=fits[best].weights)
    predicted = classes[final.predict(x_val)]
    figures = {
        "top1": 100 * float((predicted == y_val).mean()),
        "mean_per_class": 100 * float(np.mean([(predicted[y_val == c] == c).mean() for c in np.unique(y_val)])),
        "C": C,
        "top1_split": 100 * float(max(scores)),
    }
    notes = _unfinished([*zip(grid, fits, strict=True), (C, final)], config.max_iterations)
    return figures, [*notes, *_edge(C, grid)]


def strengths(config: RegressionConfig) -> list[float]:
    """The grid of C, strongest penalty first."""
    return [float(C) for C in np.logspace(*config.exponents, config.values)]


def split(n: int, holdout: float, seed: int) -> tuple[Int[np.ndarray, " fitted"], Int[np.ndarray, " held_out"]]:
    """Random positions to fit on and to choose with; at least one on either side."""
    order = np.random.default_rng(seed).permutation(n)
    held_out = min(max(round(n * holdout), 1), n - 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _unfinished(fits: Sequence[tuple[float, Fit]], limit: int) -> list[str]:
    stuck = [C for C, one in fits if not one.done]
    if not stuck:
        return []
    return [f"{len(stuck)} fits, from C = {min(stuck):.1e}, ended at {limit} iterations before they converged"]


def _edge(C: float, grid: list[float]) -> list[str]:
    if len(grid) > 1 and C in (grid[0], grid[-1]):
        return [f"the best C = {C:.1e} lies at the edge of the grid; widen logreg.exponents"]
    return []
