# SPDX-License-Identifier: Apache-2.0
"""What the demonstration compares and promises; it runs end to end in tests/integration/test_demo.py."""

from types import SimpleNamespace

import pytest
import torch

from opendino.eval._features import Features
from opendino.train import demo
from opendino.train.demo import DemoConfig, Margin, Measured


def margins(knn, logreg):
    figures = SimpleNamespace(
        knn=dict(zip(demo.ROWS, knn, strict=True)), logreg=dict(zip(demo.ROWS, logreg, strict=True))
    )
    return Measured.margins(figures)


def test_margins_are_the_differences_that_are_promised():
    kept = margins((63.0, 46.0, 64.5), (39.0, 52.0, 62.0))
    assert [(margin.points, margin.wanted) for margin in kept] == [(18.5, 12), (10.0, 9), (23.0, 10), (1.5, 0)]
    assert all(margin.met for margin in kept)
    worse = margins((63.0, 51.0, 62.5), (39.0, 52.0, 60.5))
    assert [margin.met for margin in worse] == [False, False, True, False]


@pytest.mark.parametrize(
    ("points", "wanted", "met"), [(12.0, 12, True), (11.99, 12, False), (0.01, 0, True), (0, 0, False)]
)
def test_a_margin_of_nothing_means_more_than_nothing(points, wanted, met):
    assert Margin("any", points, wanted).met is met


def test_every_row_is_compared_by_cosine_with_equal_halves():
    features = Features(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 200.0]]), torch.tensor([0]), ())
    space = demo._space(features, features)
    assert space.train.tolist() == [[3.0, 4.0, 0.0, 200.0]]
    # Each half has length one before both are put side by side, so the larger patch mean does not outweigh CLS.
    expected = torch.tensor([[0.6, 0.8, 0.0, 1.0]]) / 2**0.5
    torch.testing.assert_close(space.test_unit, expected)


def test_an_impossible_number_of_images():
    with pytest.raises(ValueError, match="images = -1"):
        DemoConfig(images=-1)
