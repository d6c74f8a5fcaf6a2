# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from opendino.data.augment import Crops
from opendino.data.collate import collate
from opendino.data.masking import MaskConfig, batch_masks
from opendino.data.preview import GAP, TINT, preview


def batch(images, channels, locals, probability=0.5):
    """Crops of one colour each: image i has value 20 * (i + 1)."""
    crops = [
        Crops(
            [np.full((channels, 8, 8), 20 * (i + 1), np.uint8)] * 2,
            [np.full((channels, 4, 4), 20 * (i + 1) + 100, np.uint8)] * locals,
        )
        for i in range(images)
    ]
    masks = batch_masks(2 * images, (4, 4), MaskConfig(probability=probability), np.random.default_rng(0))
    return collate(crops, masks, list(range(images)))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_colours_come_back_and_rows_are_images(channels):
    mean, std = (0.3,) * channels, (0.2,) * channels
    picture = preview(batch(3, channels, 2, probability=0.0).normalize(mean, std), mean, std)
    side = 112
    assert picture.height == 3 * (side + GAP)
    for row in range(3):
        top = row * (side + GAP) + GAP + 5
        assert picture.getpixel((GAP + 5, top)) == (20 * (row + 1),) * 3
        assert picture.getpixel((GAP + side + GAP + 5, top)) == (20 * (row + 1),) * 3
        assert picture.getpixel((GAP + 2 * (side + GAP) + 5, top)) == (20 * (row + 1) + 100,) * 3


def test_masked_patches_are_tinted():
    made = batch(4, 3, 0, probability=1.0)
    picture = np.asarray(preview(made.normalize((0.5,) * 3, (0.5,) * 3), (0.5,) * 3, (0.5,) * 3))
    patch = 28  # a patch of 2 pixels, enlarged 14 times
    for image in range(4):
        for crop in range(2):
            grid = made.masks[crop * 4 + image].view(4, 4)
            for y in range(4):
                for x in range(4):
                    at = picture[GAP + image * 116 + y * patch + 3, GAP + crop * 116 + x * patch + 3]
                    plain = np.full(3, 20 * (image + 1))
                    tinted = (plain * 0.25 + np.array(TINT) * 0.75).astype(int)
                    np.testing.assert_array_equal(at, tinted if grid[y, x] else plain)


def test_rows_are_limited_and_locals_are_optional():
    mean, std = (0.5,), (0.25,)
    made = batch(5, 1, 0).normalize(mean, std)
    assert preview(made, mean, std, images=2).size == (2 * 116 + GAP, 2 * 116)
