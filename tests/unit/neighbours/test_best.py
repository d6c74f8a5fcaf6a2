# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opendino.neighbours.best import Best, keys_of, kth, largest, scores_of


def offered(scores, k, widths, floor=-math.inf, turned=False):
    best, first = Best(len(scores), k, floor=floor), 0
    while first < scores.shape[1]:
        width = widths[first % len(widths)]
        part = scores[:, first : first + width].contiguous()
        best.offer(part.T.contiguous().T if turned else part, first)
        first += width
    return best.result()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.lists(st.integers(1, 90), min_size=1, max_size=4), st.booleans(),
       st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99))  # fmt: skip
def test_any_blocks_give_the_best_of_the_whole_row(n, k, widths, turned, dtype, seed):
    scores = torch.randn(3, n, generator=torch.Generator().manual_seed(seed)).to(dtype)
    values, places = offered(scores, k, widths, turned=turned)
    kept = min(k, n)
    order = values.argsort(dim=1, descending=True)
    found, where = values.gather(1, order)[:, :kept], places.gather(1, order)[:, :kept]
    assert torch.equal(found, scores.float().topk(kept, dim=1).values)
    assert torch.equal(scores.float().gather(1, where), found)
    assert all(len(set(row)) == kept for row in where.tolist())
    assert (values.gather(1, order)[:, kept:] == -math.inf).all()
    assert (places.gather(1, order)[:, kept:] == -1).all()


def test_the_order_of_arrival_does_not_matter():
    scores = torch.arange(5000.0).repeat(2, 1)
    scores[1] = scores[1].flip(0)
    values, _ = offered(scores, 7, [640])
    assert values.sort(dim=1).values.tolist() == [list(range(4993, 5000))] * 2


def test_equal_scores_are_none_too_many():
    values, places = offered(torch.zeros(2, 4000), 5, [1000])
    assert (values == 0).all()
    assert all(len(set(row)) == 5 for row in places.tolist())


def test_below_the_floor_nothing_is_kept():
    scores = torch.linspace(-1, 1, 201)[None]
    values, places = offered(scores, 30, [64], floor=0.895)
    assert sorted(place for place in places[0].tolist() if place >= 0) == list(range(190, 201))
    assert (values[0] > 0.895).sum() == 11


def test_rows_in_the_middle():
    best = Best(6, 2)
    best.offer(torch.tensor([[0.5, 0.1, 0.3]]), 10, 4)
    best.offer(torch.tensor([[0.4]]), 13, 4)
    values, places = best.result()
    assert sorted(zip(values[4].tolist(), places[4].tolist(), strict=True)) == [(pytest.approx(0.4), 13), (0.5, 10)]
    assert (places[[0, 1, 2, 3, 5]] == -1).all()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30))
def test_keys_are_in_the_order_of_scores_and_back(values):
    scores = torch.tensor(values, dtype=torch.float32)
    keys = keys_of(scores, torch.arange(len(values)))
    assert torch.equal(scores_of(keys), scores)
    by_key = keys.argsort(descending=True).tolist()
    zero = scores + 0.0  # -0 and 0 are equal as scores but not as bits
    assert [zero[i].item() for i in by_key] == zero.sort(descending=True).values.tolist()


def test_of_equal_scores_the_smaller_place_is_better():
    keys = keys_of(torch.tensor([0.25, 0.25, -1.0]), torch.tensor([7, 3, 0]))
    assert keys.argsort(descending=True).tolist() == [1, 0, 2]


def test_largest_and_kth_by_hand():
    keys = torch.tensor([[5, -3, 9, 1], [0, 0, -1, 2]])
    assert largest(keys, 2).sort(dim=1).values.tolist() == [[5, 9], [0, 2]]
    assert kth(keys.float(), 3).tolist() == [1, 0]
