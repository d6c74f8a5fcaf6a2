# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendino.data.samplers import InfiniteSampler, keyed_rng, permute
from opendino.errors import DataError


def take(sampler, count):
    return list(itertools.islice(sampler, count))


@pytest.mark.parametrize("seed", [0, 1, 12345678901234567890123])
def test_every_epoch_of_every_small_size_is_a_permutation(seed):
    for n in range(1, 130):
        for epoch in (0, 1, 7):
            assert np.array_equal(np.sort(permute(np.arange(n), n, seed, epoch)), np.arange(n)), (n, epoch)


@pytest.mark.parametrize("n", [1000, 1024, 4097, 100_003])
def test_larger_sizes_are_permutations(n):
    order = permute(np.arange(n), n, 3, 11)
    assert np.array_equal(np.sort(order), np.arange(n))
    assert not np.array_equal(order, permute(np.arange(n), n, 3, 12))
    assert not np.array_equal(order, permute(np.arange(n), n, 4, 11))


@given(st.integers(1, 2**40), st.data())
def test_single_positions_of_huge_sets_stay_inside_and_apart(n, data):
    places = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True))
    out = permute(np.array(places), n, 0, 0)
    assert len(set(out.tolist())) == len(places)
    assert out.min() >= 0
    assert out.max() < n


@pytest.mark.parametrize("n", [2, 3, 5, 6, 10])
def test_every_image_comes_to_every_place_equally_often(n):
    """Chi-squared of places against images over 4000 epochs, at one in a million."""
    from scipy.stats import chi2

    epochs = 4000
    counts = np.zeros((n, n))
    places = np.tile(np.arange(n), epochs)
    np.add.at(counts, (places, permute(places, n, 9, np.repeat(np.arange(epochs), n))), 1)
    statistic = ((counts - epochs / n) ** 2 / (epochs / n)).sum()
    assert statistic < chi2.ppf(1 - 1e-6, (n - 1) ** 2)


def test_order_is_as_random_as_numpys():
    """Neighbours, distance from home, rising steps and fixed points of a large permutation."""
    n = 20_000
    order = permute(np.arange(n), n, 0, 0).astype(float)
    place = np.arange(n)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(order, place)[0, 1]) < 0.03
    assert np.abs(order - place).mean() == pytest.approx(n / 3, rel=0.02)
    assert (np.diff(order) > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert (order == place).sum() < 10


def test_all_orders_of_three_come():
    orders = {tuple(permute(np.arange(3), 3, 0, epoch).tolist()) for epoch in range(200)}
    assert len(orders) == 6


def test_a_position_outside_is_refused():
    with pytest.raises(DataError, match="outside of the 5 images"):
        permute(np.array([5]), 5, 0, 0)
    with pytest.raises(DataError, match="at least one image"):
        InfiniteSampler(0)


def test_the_stream_is_epoch_after_epoch():
    stream = take(InfiniteSampler(7, seed=2), 21)
    for epoch in range(3):
        assert stream[7 * epoch : 7 * epoch + 7] == permute(np.arange(7), 7, 2, epoch).tolist()


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_together_take_the_stream_of_one(world):
    alone = take(InfiniteSampler(11, seed=1), 60)
    ranks = [take(InfiniteSampler(11, seed=1, rank=rank, world=world), 60 // world) for rank in range(world)]
    assert [index for row in zip(*ranks, strict=True) for index in row] == alone


@given(st.integers(0, 5000), st.integers(1, 50))
def test_resuming_anywhere_goes_on_with_the_same_order(start, n):
    assert take(InfiniteSampler(n, 0, start), 5) == take(InfiniteSampler(n, 0), start + 5)[start:]


def test_blocks_of_the_stream_join():
    long = take(InfiniteSampler(10_000, 0), 2500)
    assert long[1020:1030] == InfiniteSampler(10_000, 0).at(np.arange(1020, 1030)).tolist()


def test_keyed_numbers_depend_on_every_part_of_the_key():
    def numbers(*key):
        return tuple(keyed_rng(*key).random(3))

    keys = [(0, "crops", 0), (1, "crops", 0), (-1, "crops", 0), (0, "masks", 0), (0, "crops", 1), (0, "crops", 2**40)]
    assert len({numbers(*key) for key in keys}) == len(keys)
    assert numbers(0, "crops", 5) == numbers(0, "crops", 5)


def test_keyed_numbers_of_neighbours_are_unrelated():
    rows = np.array([keyed_rng(0, "crops", counter).random(4) for counter in range(4000)])
    assert rows.mean(axis=0) == pytest.approx(0.5, abs=0.02)
    correlation = np.corrcoef(np.concatenate([rows[:-1], rows[1:]], axis=1).T)
    assert np.abs(correlation - np.eye(8)).max() < 0.07
