# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from opendino.eval import _ridge


def blobs(n, classes=4, dim=6, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = 2 * torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    return centres[labels] + spread * torch.randn(n, dim, generator=generator) + 3.0, labels


def test_it_is_the_classifier_of_scikit_learn():
    from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV

    x, y = blobs(80, spread=2.0)
    test, _ = blobs(300, spread=2.0, seed=1)
    unit = float((x - x.mean(0)).double().square().sum() / x.shape[1])
    strengths = (1e-3, 0.1, 1.0, 10.0)
    found = _ridge.fit(x, y, 4, strengths)
    theirs = RidgeClassifierCV(alphas=[s * unit for s in strengths]).fit(x.double().numpy(), y.numpy())
    assert found.strength * unit == pytest.approx(theirs.alpha_)
    again = RidgeClassifier(alpha=found.strength * unit).fit(x.double().numpy(), y.numpy())
    # Theirs answers -1 and 1 where ours answers 0 and 1.
    assert np.allclose(2 * found.weight.numpy(), again.coef_, atol=1e-9)
    assert np.allclose(2 * found.bias.numpy() - 1, again.intercept_, atol=1e-9)
    assert np.array_equal(found.predict(test).numpy(), again.predict(test.double().numpy()))


def test_the_error_left_out_is_that_of_fits_without_the_image():
    x, y = blobs(12, classes=3, dim=3)
    found = _ridge.fit(x, y, 3, (0.1,))
    unit = float(torch.linalg.eigvalsh((x - x.mean(0)).double().T @ (x - x.mean(0)).double()).mean())
    errors = []
    for left in range(12):
        kept = torch.arange(12) != left
        rest, truth = x[kept].double(), torch.nn.functional.one_hot(y[kept], 3).double()
        design = torch.cat([rest, torch.ones(11, 1, dtype=torch.float64)], dim=1)
        penalty = 0.1 * unit * torch.diag(torch.tensor([1.0, 1, 1, 0], dtype=torch.float64))
        weight = torch.linalg.solve(design.T @ design + penalty, design.T @ truth)
        guess = torch.cat([x[left].double(), torch.ones(1, dtype=torch.float64)]) @ weight
        errors.append((guess - torch.nn.functional.one_hot(y[left], 3)).square().mean())
    assert found.loo_error[0] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-9)


def test_more_dimensions_than_images_and_constant_features():
    x, y = blobs(10, classes=2, dim=40)
    found = _ridge.fit(x, y, 2)
    assert torch.equal(found.predict(x), y)
    same = _ridge.fit(torch.ones(6, 3), torch.tensor([0, 1, 1, 1, 0, 1]), 2)
    assert same.predict(torch.ones(2, 3)).tolist() == [1, 1]  # all that is known is which class is more common
    assert bool(same.weight.isfinite().all())


def test_a_class_without_images_is_never_answered():
    x, y = blobs(60)
    assert set(_ridge.fit(x, y, 7).predict(x).tolist()) == {0, 1, 2, 3}
