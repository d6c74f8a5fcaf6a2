# SPDX-License-Identifier: Apache-2.0
"""L2 logistic regression on frozen features, in float64: how much of the classes is linearly there.

The strength of the penalty is chosen on a held-out tenth of the training images, then the classifier is fitted again
on all of them and measured once. The grid is walked from strong to weak penalty, each fit starting where the last one
ended: the optimum of a convex problem does not depend on the start, the time does.

Read next: `_features.py`, `_data.py`.
"""

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from opendino import config as settings
from opendino.distributed import is_main
from opendino.errors import ConfigError, DataError
from opendino.eval._data import LabelledConfig, extract_pair
from opendino.eval._features import FeatureConfig, FeatureKind, place
from opendino.eval._results import Results, describe
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
        tolerance: largest component of the mean loss's gradient at which a fit is done.
        max_iterations: at which a fit ends anyway, and says so.
        precision: of the arithmetic; "float32" takes half the time and is good to a tolerance of about 1e-3.
        patience: strengths in a row that may fall short of the best one before weaker penalties, whose fits take
            longest, are left out; 0 tries all.
    """

    feature: FeatureKind = "cls"
    standardize: bool = False
    values: int = 45
    exponents: tuple[float, float] = (-6.0, 5.0)
    holdout: float = 0.1
    seed: int = 0
    tolerance: float = 1e-5
    max_iterations: int = 1000
    precision: Literal["float64", "float32"] = "float64"
    patience: int = 0

    def __post_init__(self) -> None:
        if self.values < 1:
            raise ConfigError(f"logreg.values = {self.values}: give 1 or more values of C")
        if self.patience < 0:
            raise ConfigError(f"logreg.patience = {self.patience}: give a number of strengths, or 0 to try all")
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
    start = time.perf_counter()
    place(backbone, config.features)
    pair = extract_pair(backbone, config.data, config.features)
    figures, notes = evaluate(
        pair.train.select(config.logreg.feature, normalize=False),
        pair.train_labels,
        pair.val.select(config.logreg.feature, normalize=False),
        pair.val_labels,
        config.logreg,
    )
    results = Results(
        "logreg",
        figures,
        pair.record,
        describe(backbone, source or {}),
        settings.to_dict(config),
        time.perf_counter() - start,
        (*pair.notes, *notes),
    )
    if out is not None and is_main():
        results.write(out)
    return results


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
    Differs: scikit-learn's Newton method with conjugate gradients in place of cuML's L-BFGS; the objective is the same,
        and weak penalties, where L-BFGS needs thousands of steps, converge in a few.
    """
    x, x_val, y, y_val = train.double().numpy(), val.double().numpy(), train_labels.numpy(), val_labels.numpy()
    if config.standardize:
        mean, std = x.mean(axis=0), x.std(axis=0)
        std[std == 0] = 1.0  # a constant feature stays constant
        x, x_val = (x - mean) / std, (x_val - mean) / std
    x, x_val = x.astype(config.precision), x_val.astype(config.precision)
    fitted, held_out = split(len(x), config.holdout, config.seed)
    if min(len(np.unique(y)), len(np.unique(y[fitted]))) < 2:
        raise DataError(f"logistic regression needs two or more classes among {len(fitted)} training images, got one")
    grid = strengths(config)
    path = _Path(config)
    best, scores = path.walk(grid, (x[fitted], y[fitted]), (x[held_out], y[held_out]))
    C = grid[best]
    predicted = path.fit(x, y, C, start=best).predict(x_val)
    figures = {
        "top1": 100 * float((predicted == y_val).mean()),
        "mean_per_class": 100 * float(np.mean([(predicted[y_val == c] == c).mean() for c in np.unique(y_val)])),
        "C": C,
        "top1_split": 100 * float(max(scores)),
    }
    return figures, [*path.notes(), *_edge(C, grid)]


def strengths(config: RegressionConfig) -> list[float]:
    """The grid of C, strongest penalty first."""
    return [float(C) for C in np.logspace(*config.exponents, config.values)]


def split(n: int, holdout: float, seed: int) -> tuple[Int[np.ndarray, " fitted"], Int[np.ndarray, " held_out"]]:
    """Random positions to fit on and to choose with; at least one on either side."""
    order = np.random.default_rng(seed).permutation(n)
    held_out = min(max(round(n * holdout), 1), n - 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


class _Path:
    """Fits along the grid, each starting from the one before."""

    def __init__(self, config: RegressionConfig) -> None:
        from sklearn.linear_model import LogisticRegression

        self.limit = config.max_iterations
        # Typed as anything: scikit-learn's stubs know no arrays with shapes.
        self.model: Any = LogisticRegression(
            tol=config.tolerance, max_iter=self.limit, warm_start=True, solver="newton-cg"
        )
        self.patience = config.patience
        self.unfinished: list[float] = []
        self.ends: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def walk(
        self, grid: list[float], fitted: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray]
    ) -> tuple[int, list[float]]:
        """Position of the best strength, and the accuracy of each that was tried."""
        best, scores = 0, []
        for position, C in enumerate(grid):
            scores.append(self.fit(*fitted, C).accuracy(*held_out))
            # The first best is the strongest penalty among equals.
            best = position if scores[position] > scores[best] else best
            if self.patience and position - best >= self.patience:
                break
        return best, scores

    def fit(self, x: Float[np.ndarray, "n D"], y: Int[np.ndarray, " n"], C: float, start: int | None = None) -> "_Path":
        """Fit from where the last fit ended, or from the end of fit number `start`."""
        from sklearn.exceptions import ConvergenceWarning

        if start is not None:
            classes, coefficients, intercept = self.ends[start]
            if np.array_equal(classes, np.unique(y)):
                self.model.coef_, self.model.intercept_ = coefficients.copy(), intercept.copy()
            else:  # the part that C was chosen with lacks a class
                self.model.set_params(warm_start=False)
        self.model.set_params(C=C)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")  # a line search that ends at rounding is no news
            warnings.simplefilter("always", ConvergenceWarning)
            self.model.fit(x, y)
        if caught:
            self.unfinished.append(C)
        self.ends.append((self.model.classes_, self.model.coef_.copy(), self.model.intercept_.copy()))
        return self

    def predict(self, x: Float[np.ndarray, "m D"]) -> Int[np.ndarray, " m"]:
        return self.model.predict(x)

    def accuracy(self, x: Float[np.ndarray, "m D"], y: Int[np.ndarray, " m"]) -> float:
        return float((self.predict(x) == y).mean())

    def notes(self) -> list[str]:
        if not self.unfinished:
            return []
        first, n = min(self.unfinished), len(self.unfinished)
        return [f"{n} fits, from C = {first:.1e}, ended at {self.limit} iterations before they converged"]


def _edge(C: float, grid: list[float]) -> list[str]:
    if len(grid) > 1 and C in (grid[0], grid[-1]):
        return [f"the best C = {C:.1e} lies at the edge of the grid; widen logreg.exponents"]
    return []
