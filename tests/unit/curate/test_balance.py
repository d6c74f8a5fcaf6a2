# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opendino.curate.balance import BalanceConfig, entropy, run, sample, shares
from opendino.errors import ConfigError

SIZES = st.lists(st.integers(0, 20), min_size=1, max_size=12)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_shares_by_hand():
    assert shares(np.array([1, 5, 9]), 7, rng()).tolist() == [1, 3, 3]
    assert sorted(shares(np.array([1, 5, 9]), 8, rng()).tolist()) == [1, 3, 4]
    assert shares(np.array([2, 2]), 9, rng()).tolist() == [2, 2]


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(0, 150), st.integers(0, 9))
def test_shares_are_whole_and_even(sizes, budget, seed):
    sizes = np.array(sizes)
    given_ = shares(sizes, budget, rng(seed))
    assert given_.sum() == min(budget, sizes.sum())
    assert (given_ <= sizes).all()
    assert (given_ >= 0).all()
    # Whoever has less than another, by more than the one that is drawn, has all it could have.
    assert all(given_[i] == sizes[i] for i in range(len(sizes)) if given_[i] < given_.max() - 1)


@st.composite
def trees(draw):
    n = draw(st.integers(1, 60))
    first = draw(st.integers(1, 8))
    second = draw(st.integers(1, 3))
    seed = draw(st.integers(0, 99))
    return [rng(seed).integers(0, first, n), rng(seed + 1).integers(0, second, first)]


@settings(max_examples=30, deadline=None)
@given(trees(), st.integers(1, 150), st.integers(1, 3), st.integers(0, 5))
def test_a_sample_has_its_size_and_keeps_to_the_copies(tree, size, copies, seed):
    times = sample(tree, size, seed, copies=copies)
    assert times.sum() == min(size, len(tree[0]) * copies)
    assert times.max() <= copies
    # Within a cluster every row is drawn equally often, give or take one.
    for cluster in np.unique(tree[0]):
        mine = times[tree[0] == cluster]
        assert mine.max() - mine.min() <= 1
    assert np.array_equal(times, sample(tree, size, seed, copies=copies))


def test_one_level_of_equal_clusters_is_uniform():
    times = sample([np.arange(100) % 5], 50, 0)
    assert np.bincount(np.arange(100) % 5, weights=times).tolist() == [10] * 5


def test_a_long_tail_becomes_even():
    cluster = np.repeat(np.arange(6), [100, 50, 20, 12, 11, 10])
    times = sample([cluster], 60, 0)
    assert np.bincount(cluster, weights=times).tolist() == [10] * 6
    assert entropy(np.bincount(cluster[times > 0])) == pytest.approx(np.log(6))


def test_the_entropy_of_one_concept_is_nothing_and_not_less():
    assert str(entropy(np.array([3, 0]))) == str(entropy(np.array([], dtype=np.int64))) == "0.0"


def test_the_upper_level_shares_before_the_lower():
    # Concept 0 has three clusters, concept 1 has one: each concept gets half.
    cluster = np.repeat(np.arange(4), 10)
    times = sample([cluster, np.array([0, 0, 0, 1])], 18, 0)
    assert np.bincount(cluster, weights=times).tolist() == [3, 3, 3, 9]


def test_the_closest_are_drawn_where_asked_for():
    distance = np.array([0.3, 0.1, 0.2, 0.9])
    assert sample([np.zeros(4, dtype=int)], 2, 0, closest=distance).tolist() == [0, 1, 1, 0]


def test_more_than_there_is(tmp_path, selected):
    with pytest.raises(ConfigError, match=r"there are 3 images, at most 2 times each; give 6 or less"):
        run(tmp_path, selected([1, 2, 3]), tmp_path, BalanceConfig(size=7, copies=2))
    with pytest.raises(ConfigError, match="0 or more"):
        BalanceConfig(size=-1)


def test_the_stage_writes_rows_and_paths(tmp_path, selected):
    chosen = selected([10, 20, 30, 40], name="chosen")
    arrays = {"clusters-1": [0, 0, 1, 1], "distances-1": [0.1, 0.2, 0.3, 0.4], "clusters-2": [0, 0]}
    clusters = selected([], name="clusters", **arrays)
    folder = run(tmp_path, chosen, clusters, BalanceConfig(size=2, choose="closest"))
    assert np.load(folder / "kept.npy").tolist() == [10, 30]
    assert np.load(folder / "paths.npy").tolist() == [[0, 0], [1, 0]]
