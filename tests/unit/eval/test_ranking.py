# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from sklearn.metrics import auc

from opendino.eval import _ranking


def test_average_precision_worked_by_hand():
    # Right at places 1 and 3: (1 + 1) / 2 and (1/2 + 2/3) / 2, over two right ones.
    assert _ranking.average_precision([7, 1, 8, 2], {7, 8}) == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert _ranking.average_precision([7, 8, 1], {7, 8}) == 1
    assert _ranking.average_precision([1, 2, 7], {7}) == pytest.approx((0 + 1 / 3) / 2)
    # Junk is as if it were not there; a right image that is not in the list counts against it.
    assert _ranking.average_precision([1, 7, 2, 8], {7, 8}, {1, 2}) == 1
    assert _ranking.average_precision([7], {7, 8}) == 0.5


def test_it_is_the_area_under_the_steps_of_precision_over_recall():
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = rng.permutation(60)
        right = set(rng.choice(60, 9, replace=False).tolist())
        hits = np.isin(order, list(right))
        precision = np.concatenate([[1.0], np.cumsum(hits) / np.arange(1, 61)])
        recall = np.concatenate([[0], np.cumsum(hits) / 9])
        assert _ranking.average_precision(order, right) == pytest.approx(auc(recall, precision))


def test_precision_and_recall_at_k():
    ranked = [5, 1, 6, 2, 7, 3]
    assert _ranking.precision_at(ranked, {5, 6, 7}, 2) == 0.5
    assert _ranking.precision_at(ranked, {5, 6}, 10) == pytest.approx(2 / 3)  # the last right one is third
    assert _ranking.precision_at(ranked, {9}, 3) == 0
    assert _ranking.precision_at(ranked, {5, 6}, 10, {1}) == 1
    assert _ranking.recall_at(ranked, {6}, 2) == 0
    assert _ranking.recall_at(ranked, {6}, 3) == 1
    assert _ranking.recall_at(ranked, {6}, 2, {1}) == 1


def test_sure_mistakes_cost_more():
    right, answerable = np.array([True, False, True]), np.array([True, True, True])
    assert _ranking.global_average_precision(np.array([0.9, 0.1, 0.8]), right, answerable) == pytest.approx(2 / 3)
    assert _ranking.global_average_precision(np.array([0.8, 0.9, 0.1]), right, answerable) == pytest.approx(
        (1 / 2 + 2 / 3) / 3
    )
    # A distractor ranks among the others and has no answer to miss.
    distractor = np.array([True, False, True])
    assert _ranking.global_average_precision(np.array([0.9, 0.8, 0.1]), right, distractor) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert _ranking.global_average_precision(np.ones(2), np.zeros(2, bool), np.zeros(2, bool)) == 0
