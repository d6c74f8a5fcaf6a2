# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from opendino.errors import ConfigError, DataError
from opendino.eval import logreg
from opendino.eval.logreg import RegressionConfig


def blobs(n, seed, noise=1.5, classes=4, dim=6):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(5).normal(size=(classes, dim))
    features = (centres[labels] + noise * rng.normal(size=(n, dim))).astype(np.float32)
    return torch.from_numpy(features), torch.from_numpy(labels)


def test_agrees_with_fresh_fits_at_each_strength():
    x, y = blobs(400, 0)
    x_val, y_val = blobs(200, 1)
    config = RegressionConfig(values=7, tolerance=1e-8)
    figures, notes = logreg.evaluate(x, y, x_val, y_val, config)
    fitted, held_out = logreg.split(400, 0.1, 0)
    scores = []
    for C in logreg.strengths(config):
        model = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(x[fitted].double(), y[fitted])
        scores.append(model.score(x[held_out].double(), y[held_out]))
    C = logreg.strengths(config)[int(np.argmax(scores))]
    final = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(x.double(), y)
    assert figures["C"] == C
    assert figures["top1_split"] == pytest.approx(100 * max(scores))
    assert figures["top1"] == pytest.approx(100 * final.score(x_val.double(), y_val), abs=1e-9)
    assert notes == []


def test_the_grid_is_the_published_one():
    grid = logreg.strengths(RegressionConfig())
    assert len(grid) == 45
    np.testing.assert_allclose(grid, 10 ** np.linspace(-6, 5, 45))


def test_the_split_is_a_tenth_fixed_by_the_seed():
    fitted, held_out = logreg.split(1000, 0.1, 0)
    assert len(held_out) == 100
    assert sorted([*fitted, *held_out]) == list(range(1000))
    np.testing.assert_array_equal(held_out, logreg.split(1000, 0.1, 0)[1])
    assert not np.array_equal(held_out, logreg.split(1000, 0.1, 1)[1])
    assert [len(part) for part in logreg.split(2, 0.1, 0)] == [1, 1]


def test_standardising_makes_scales_irrelevant():
    x, y = blobs(300, 0)
    x_val, y_val = blobs(150, 1)
    scale = torch.tensor([1.0, 100.0, 0.01, 3.0, 10.0, 0.1])
    config = RegressionConfig(values=5, exponents=(-3.0, 1.0), standardize=True, tolerance=1e-9)
    plain, _ = logreg.evaluate(x, y, x_val, y_val, config)
    scaled, _ = logreg.evaluate(x * scale + 7, y, x_val * scale + 7, y_val, config)
    assert scaled["C"] == plain["C"]
    assert scaled["top1"] == pytest.approx(plain["top1"], abs=1.0)


def test_a_constant_feature_counts_for_nothing_when_standardised():
    (x, y), (x_val, y_val) = blobs(200, 0), blobs(100, 1)
    x[:, 0], x_val[:, 0] = 4.0, 4.0
    config = RegressionConfig(values=2, exponents=(-2.0, 0.0), standardize=True, tolerance=1e-9)
    assert logreg.evaluate(x, y, x_val, y_val, config) == logreg.evaluate(x[:, 1:], y, x_val[:, 1:], y_val, config)


def test_mean_per_class_weighs_classes_equally():
    x = torch.tensor([[-1.0], [-1.1], [1.0], [1.1]] * 20)
    y = torch.tensor([0, 0, 1, 1] * 20)
    x_val = torch.tensor([[-1.0]] * 8 + [[-1.0]] * 1 + [[1.0]] * 1)
    y_val = torch.tensor([0] * 8 + [1, 1])
    figures, _ = logreg.evaluate(x, y, x_val, y_val, RegressionConfig(values=1, exponents=(0.0, 0.0)))
    assert figures["top1"] == pytest.approx(90)
    assert figures["mean_per_class"] == pytest.approx(75)


def test_says_when_it_did_not_converge_or_the_grid_was_too_narrow():
    x, y = blobs(200, 0, noise=0.3)
    _, notes = logreg.evaluate(x, y, x, y, RegressionConfig(values=3, max_iterations=1, tolerance=1e-12))
    assert any("ended at 1 iterations" in note for note in notes)
    x, y = blobs(200, 0, noise=3.0)
    _, notes = logreg.evaluate(x, y, x, y, RegressionConfig(values=2, exponents=(-9.0, -8.0)))
    assert any("edge of the grid" in note for note in notes)


def test_the_last_fit_is_among_those_that_did_not_converge():
    x, y = blobs(200, 0, noise=0.3)
    config = RegressionConfig(values=1, exponents=(3.0, 3.0), max_iterations=1, tolerance=1e-12)
    _, notes = logreg.evaluate(x, y, x, y, config)
    assert notes[0].startswith("2 fits")  # on nine tenths to choose C, and on all


def test_a_class_that_the_choice_of_C_did_not_see_is_fitted_all_the_same():
    x, y = blobs(100, 0, classes=2)
    _, held_out = logreg.split(101, 0.1, 0)
    alone = int(held_out[0])
    x = torch.cat([x[:alone], torch.full((1, 6), 50.0), x[alone:]])
    y = torch.cat([y[:alone], torch.tensor([2]), y[alone:]])
    config = RegressionConfig(values=1, exponents=(0.0, 0.0))
    figures, _ = logreg.evaluate(x, y, x[alone : alone + 1], y[alone : alone + 1], config)
    assert figures["top1"] == 100


def test_one_class_is_an_error():
    x = torch.randn(20, 3)
    y = torch.zeros(20, dtype=torch.int64)
    with pytest.raises(DataError, match="two or more classes"):
        logreg.evaluate(x, y, x, y)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"values": 0}, "1 or more"), ({"holdout": 1.0}, "between 0 and 1")],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(ConfigError, match=message):
        RegressionConfig(**wrong)
