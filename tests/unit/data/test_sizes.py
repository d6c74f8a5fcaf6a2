# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from opendino.data.augment import CropsConfig, check_crops
from opendino.data.datasets import open_dataset
from opendino.data.loaders import pretrain_loader
from opendino.data.masking import MaskConfig
from opendino.data.sizes import CropSizes
from opendino.errors import ConfigError

SMALL = {"global_size": 16, "local_size": 8, "local_number": 1}


def test_one_size_is_the_configured_one():
    crops = CropsConfig()
    assert CropSizes(crops, 14, 0).at(3) is crops


def test_early_crops_are_small_and_local_ones_in_proportion():
    sizes = CropSizes(CropsConfig(early_size=112, early_until=3), 14, 0)
    sides = [(crops.global_size, crops.local_size) for crops in map(sizes.at, range(5))]
    # 98 / 2 = 49 pixels are 3.5 patches, and an even number of them is taken.
    assert sides == [(112, 56)] * 3 + [(224, 98)] * 2


def test_mixed_sizes_are_drawn_alike_at_any_time_and_evenly():
    crops = CropsConfig(global_size=518, local_size=224, mixed_sizes=(224, 448, 518), early_size=112, early_until=10)
    drawn = [CropSizes(crops, 14, 7).at(step).global_size for step in range(3010)]
    assert drawn[:10] == [112] * 10
    counts = np.array([drawn[10:].count(size) for size in crops.mixed_sizes])
    assert counts.sum() == 3000
    assert abs(counts - 1000).max() < 110, "four deviations"
    again = CropSizes(crops, 14, 7)
    assert [again.at(step).global_size for step in reversed(range(3010))] == drawn[::-1], (
        "the order of asking is nothing"
    )
    assert again.at(11).local_size % 14 == 0


def test_sizes_have_to_be_whole_numbers_of_patches():
    with pytest.raises(
        ConfigError, match=r"crops\.mixed_sizes = 225 is not a multiple of the patch size 14; use 224 or 238"
    ):
        check_crops(CropsConfig(mixed_sizes=(224, 225)), 14)
    with pytest.raises(ConfigError, match=r"crops\.early_until = 0\.75 is a share of a run"):
        CropSizes(CropsConfig(early_size=112), 14, 0)
    with pytest.raises(ConfigError, match=r"crops\.early_size = 100 .* use 98 or 112"):
        check_crops(CropsConfig(early_size=100), 14)


def test_batches_have_their_size_with_any_workers_and_from_any_step(picture_folder):
    crops = CropsConfig(**SMALL, mixed_sizes=(8, 16, 24), early_size=8, early_until=2)

    def batches(first, last, workers=0):
        loader = pretrain_loader(open_dataset(picture_folder), crops, MaskConfig(), 4, 4, 1, first, workers)
        try:
            return [next(loader) for _ in range(first, last)]
        finally:
            loader.close()

    whole, resumed = batches(0, 8, workers=2), batches(5, 8)
    assert [batch.global_crops.shape[-1] for batch in whole[:2]] == [8, 8]
    assert len({batch.global_crops.shape[-1] for batch in whole[2:]}) > 1
    for batch in whole:
        side = batch.global_crops.shape[-1]
        assert batch.masks.shape == (8, (side // 4) ** 2)
        assert batch.local_crops.shape[-1] == max(round(side / 8), 1) * 4
    for one, other in zip(whole[5:], resumed, strict=True):
        assert torch.equal(one.global_crops, other.global_crops)
        assert torch.equal(one.mask_indices, other.mask_indices)
