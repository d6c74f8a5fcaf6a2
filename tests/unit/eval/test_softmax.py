# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from opendino.eval import _softmax
from opendino.eval._softmax import fit, principal_axes


def blobs(n=400, seed=0, noise=1.5, classes=4, dim=6, scales=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(5).normal(size=(classes, dim))
    return (centres[labels] + noise * rng.normal(size=(n, dim))) * scales, labels


def solve(x, y, C, **more):
    axes = principal_axes(x)
    return axes, fit(axes.turn(x), y, int(y.max()) + 1, C, axes.variances, **more)


def plain_weights(axes, found):
    """Slopes in the features' own coordinates."""
    return found.weights[:, :-1] @ axes.vectors.T


@pytest.mark.parametrize("C", [1e-3, 0.3, 100.0])
def test_objective_is_the_published_one(C):
    # C times the summed cross-entropy plus half the squared weights, intercept free: minimised independently.
    x, y = blobs(120, classes=3, dim=3)

    def objective(flat):
        w, b = flat[:9].reshape(3, 3), flat[9:]
        logits = x @ w.T + b
        top = logits.max(axis=1)
        log_norm = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
        return C * (log_norm - logits[np.arange(len(y)), y]).sum() + 0.5 * (w**2).sum()

    best = minimize(objective, np.zeros(12), method="BFGS", options={"gtol": 1e-7})
    axes, found = solve(x, y, C, tolerance=1e-9)
    np.testing.assert_allclose(plain_weights(axes, found).ravel(), best.x[:9], atol=2e-4)


@pytest.mark.parametrize("classes", [2, 4])
def test_agrees_with_scikit_learn(classes):
    x, y = blobs(classes=classes, scales=np.array([1.0, 30.0, 0.1, 1.0, 1.0, 5.0]))
    theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=20_000, solver="newton-cg").fit(x, y)
    axes, found = solve(x, y, 0.5, tolerance=1e-9)
    assert (found.predict(axes.turn(x)) == theirs.predict(x)).all()
    slopes = plain_weights(axes, found)
    mine = slopes[1:] - slopes[:1] if classes == 2 else slopes
    np.testing.assert_allclose(mine, theirs.coef_, atol=1e-4, rtol=1e-3)


def test_a_warm_start_ends_at_the_same_optimum():
    x, y = blobs()
    axes, cold = solve(x, y, 10.0, tolerance=1e-9)
    weights = None
    for C in (1e-3, 1e-1, 10.0):
        last = fit(axes.turn(x), y, 4, C, axes.variances, weights, tolerance=1e-9)
        weights = last.weights
    np.testing.assert_allclose(last.weights, cold.weights, atol=1e-5)
    again = fit(axes.turn(x), y, 4, 10.0, axes.variances, weights, tolerance=1e-6)
    assert again.passes <= 2


def test_gradient_is_that_of_the_loss_whatever_the_blocks(monkeypatch):
    x, y = blobs(50)
    weights, rng = np.random.default_rng(1).normal(size=(4, 7)), np.random.default_rng(2)
    value, gradient = _softmax._objective(weights, x, y, 0.3)
    for _ in range(3):
        step = rng.normal(size=weights.shape) * 1e-5
        ahead, behind = (_softmax._objective(weights + sign * step, x, y, 0.3)[0] for sign in (1, -1))
        assert (ahead - behind) / 2 == pytest.approx((gradient * step).sum(), rel=1e-6)
    monkeypatch.setattr(_softmax, "_ROWS", 7)
    blocks, parts = _softmax._objective(weights, x, y, 0.3)
    assert blocks == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(parts, gradient, atol=1e-12)


def test_features_that_vary_together_take_few_passes():
    """Curvatures a million apart: plain L-BFGS takes hundreds of passes to the same tolerance."""
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.normal(size=(40, 40)))[0] * np.logspace(0, -3, 40)
    x, y = blobs(2000, dim=40)
    x = x @ mixing.T
    _, found = solve(x, y, 1e3, tolerance=1e-6)
    unaware = fit(x, y, 4, 1e3, np.ones(40), tolerance=1e-6)
    assert found.done
    assert found.passes < 100
    assert unaware.passes > 3 * found.passes


def test_an_end_before_the_optimum_is_told():
    x, y = blobs()
    assert not solve(x, y, 1.0, max_iterations=1, tolerance=1e-12)[1].done
    assert solve(x, y, 1.0)[1].done


def test_axes_turn_and_keep_lengths():
    x, _ = blobs()
    axes = principal_axes(x)
    turned = axes.turn(x)
    np.testing.assert_allclose(turned.T @ turned / len(x), np.diag(axes.variances), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(x - x.mean(axis=0), axis=1))


def test_constant_features_and_more_features_than_rows():
    x, y = blobs(20, dim=30, noise=0.3)
    x[:, 3] = 7.0
    axes, found = solve(x, y, 1.0)
    assert np.isfinite(found.weights).all()
    assert abs(plain_weights(axes, found)[:, 3]).max() < 1e-8
