# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opendino.data.masking import MaskConfig, Padding, batch_masks, block_mask, draw_masks, mask_shares, max_block
from opendino.errors import ConfigError

# (grid side, target, mean masked patches of the published generator over 1,000 draws)
PUBLISHED_MEANS = [
    (16, 25, 24.90),
    (16, 51, 50.92),
    (16, 76, 75.91),
    (16, 102, 101.93),
    (16, 128, 127.90),
    (14, 19, 18.90),
    (14, 39, 38.93),
    (14, 58, 57.92),
    (14, 78, 77.94),
    (14, 98, 97.93),
]


def official_max_block(image: int, patch: int) -> float:
    return 0.5 * image // patch * image // patch


@pytest.mark.parametrize(("image", "patch", "area"), [(224, 14, 128), (224, 16, 98), (518, 14, 666)])
def test_max_block_of_the_published_sizes(image, patch, area):
    assert max_block((image // patch, image // patch)) == area == official_max_block(image, patch)


@given(st.integers(1, 64), st.integers(1, 32))
def test_max_block_is_the_official_expression_on_every_square_image(side, patch):
    assert max_block((side, side)) == official_max_block(side * patch, patch)


@given(st.integers(1, 40), st.integers(1, 40))
def test_max_block_does_not_know_rows_from_columns(height, width):
    assert max_block((height, width)) == max_block((width, height)) <= height * width / 2


@pytest.mark.parametrize(("side", "target", "published"), PUBLISHED_MEANS)
def test_masked_counts_have_the_published_means(side, target, published):
    rng = np.random.default_rng(target)
    counts = np.array([block_mask((side, side), target, rng).sum() for _ in range(1000)])
    assert counts.max() == target
    # Both means come from 1,000 draws: their difference spreads by sqrt(2) standard errors, plus printed rounding.
    assert abs(counts.mean() - published) < 4 * math.sqrt(2) * counts.std() / math.sqrt(1000) + 0.005
    assert counts.mean() < target


def test_masks_favour_no_side_and_neighbours_go_together():
    rng = np.random.default_rng(0)
    masks = np.stack([block_mask((16, 16), 76, rng) for _ in range(1000)]).astype(float)
    places = masks.mean(axis=0)
    for mirrored in (places[::-1], places[:, ::-1], places.T):
        assert np.allclose(places, mirrored, atol=4 * math.sqrt(2 * 0.25 / 1000))
    same_as_right = (masks[:, :, 1:] == masks[:, :, :-1]).mean()
    independent = (76 / 256) ** 2 + (180 / 256) ** 2
    assert same_as_right > independent + 0.2


@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.floats(0, 1), st.integers(0, 100))
def test_a_mask_never_exceeds_its_target(grid, share, seed):
    target = int(share * grid[0] * grid[1])
    mask = block_mask(grid, target, np.random.default_rng(seed))
    assert mask.shape == grid
    assert mask.sum() <= target


@pytest.mark.parametrize(("side", "upperbound", "real"), [(16, 2496, 2437), (14, 1906, 1864)])
def test_batches_of_32_images_have_the_published_numbers(side, upperbound, real):
    rng = np.random.default_rng(0)
    batches = [batch_masks(64, (side, side), MaskConfig(), rng) for _ in range(60)]
    totals = np.array([int(batch.masks.sum()) for batch in batches])
    assert {batch.upperbound for batch in batches} == {upperbound}
    assert totals.max() <= upperbound
    assert abs(totals.mean() - real) < 4 * totals.std() / math.sqrt(60) + 1


def test_half_of_the_rows_are_masked_and_the_shares_are_stratified():
    rng = np.random.default_rng(1)
    masks = batch_masks(64, (16, 16), MaskConfig(), rng).masks
    counts = np.sort(masks.sum(dim=1).numpy())
    assert (counts == 0).sum() == 32
    edges = np.linspace(0.1, 0.5, 33)
    targets_low = (256 * edges[:-1]).astype(int)
    targets_high = (256 * edges[1:]).astype(int)
    assert np.all(counts[32:] <= targets_high)
    assert np.all(counts[32:] >= targets_low - 4)


def test_masks_fall_on_either_view():
    rng = np.random.default_rng(2)
    masked = np.mean([batch_masks(8, (16, 16), MaskConfig(), rng).masks.any(dim=1).numpy() for _ in range(400)], axis=0)
    assert np.allclose(masked, 0.5, atol=0.1)


def test_indices_and_weights_describe_the_masks():
    batch = batch_masks(6, (8, 10), MaskConfig(probability=0.7), np.random.default_rng(3))
    rows, columns = batch.masks.nonzero(as_tuple=True)
    assert torch.equal(batch.indices, rows * 80 + columns)
    # The weights of one masked crop sum to one: the loss is a mean over its patches.
    sums = torch.zeros(6).index_add(0, rows, batch.weights)
    assert torch.allclose(sums, batch.masks.any(dim=1).float())
    assert len(batch.weights.unique()) <= 4


def test_the_same_state_gives_the_same_masks():
    first = batch_masks(6, (8, 8), MaskConfig(), np.random.default_rng(4))
    second = batch_masks(6, (8, 8), MaskConfig(), np.random.default_rng(4))
    other = batch_masks(6, (8, 8), MaskConfig(), np.random.default_rng(5))
    assert torch.equal(first.masks, second.masks)
    assert not torch.equal(first.masks, other.masks)


@pytest.mark.parametrize("config", [MaskConfig(probability=0.0), MaskConfig(ratio=(0.0, 0.0))])
def test_a_batch_may_have_no_masks(config):
    batch = batch_masks(4, (4, 4), config, np.random.default_rng(0))
    assert not batch.masks.any()
    assert batch.indices.shape == batch.weights.shape == (0,)
    assert batch.upperbound == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"probability": 1.5},
        {"ratio": (0.5, 0.1)},
        {"min_block": 0},
        {"aspect": (0.0, 1.0)},
        {"aspect": (1.0, math.inf)},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"masks.{next(iter(wrong))} = "):
        MaskConfig(**wrong)


def test_shares_of_a_batch_and_masks_of_a_part_of_it():
    """What a crop is hidden by does not depend on which other crops are drawn beside it."""
    config = MaskConfig()
    shares = mask_shares(16, config, np.random.default_rng(0))
    assert (shares > 0).sum() == 8
    edges = np.linspace(0.1, 0.5, 9)
    assert np.all((np.sort(shares)[8:] >= edges[:-1]) & (np.sort(shares)[8:] <= edges[1:]))

    def drawn(rows):
        return draw_masks(shares[rows], (8, 8), config, [np.random.default_rng(row) for row in rows])

    whole, part = drawn(range(16)), drawn(range(1, 16, 2))
    assert torch.equal(whole.masks[1::2], part.masks)
    assert int(whole.masks.sum()) <= whole.upperbound == sum(int(64 * share) for share in shares)


@pytest.mark.parametrize(("side", "upperbound"), [(16, 2496), (14, 1906)])
def test_a_whole_batch_is_filled_up_to_the_published_bound(side, upperbound):
    patches, config = side * side, MaskConfig()
    found = batch_masks(64, (side, side), config, np.random.default_rng(5))
    padding = Padding(64, config, tuple(found.masks.sum(dim=1).tolist()))
    indices, weights = padding.fill(found.indices, found.weights, patches)
    assert len(indices) == len(weights) == padding.length(patches) == upperbound
    real = weights > 0
    assert torch.equal(indices[real], found.indices)
    assert torch.equal(weights[real], found.weights)
    assert not indices[~real].any()


def test_parts_of_a_step_have_one_of_five_lengths():
    """Of 1,024 crops a process has 128: how many are masked there varies a lot, the length little, and by steps."""
    config, patches, lengths, counts = MaskConfig(), 196, [], []
    for seed in range(300):
        shares = mask_shares(1024, config, np.random.default_rng(seed))[seed % 8 :: 8]
        masked = tuple((patches * shares).astype(int).tolist())
        lengths.append(Padding(1024, config, masked).length(patches))
        counts.append(sum(masked))
    assert 3 <= len(set(lengths)) <= 4
    mean, deviation = np.mean(counts), np.std(counts)
    assert sorted(set(lengths))[:3] == pytest.approx([mean, mean + deviation, mean + 2 * deviation], rel=0.02)
    assert all(count <= length for count, length in zip(counts, lengths, strict=True))
    assert np.mean(lengths) < mean + deviation
    # The case that does not come: the heaviest masks all in one place.
    heaviest = tuple(
        sorted((patches * mask_shares(1024, config, np.random.default_rng(0))).astype(int).tolist())[-128:]
    )
    assert sum(heaviest) <= Padding(1024, config, heaviest).length(patches) < 1.02 * sum(heaviest)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 40),
    part=st.integers(1, 40),
    side=st.integers(1, 8),
    probability=st.floats(0, 1),
    ratio=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).map(tuple),
    seed=st.integers(0, 99),
)
def test_there_is_room_for_any_part_of_any_step(rows, part, side, probability, ratio, seed):
    config, rng, grid = MaskConfig(probability, ratio, min_block=1), np.random.default_rng(seed), (side, side)
    chosen = rng.permutation(rows)[:part]
    found = draw_masks(mask_shares(rows, config, rng)[chosen], grid, config, itertools.repeat(rng))
    padding = Padding(rows, config, tuple(found.masks.sum(dim=1).tolist()))
    indices, weights = padding.fill(found.indices, found.weights, side * side)
    assert torch.equal(indices[: len(found.indices)], found.indices)
    assert weights.sum() == pytest.approx(float(found.weights.sum()))
    assert len(indices) == len(weights) == padding.length(side * side) >= len(found.indices)
