# SPDX-License-Identifier: Apache-2.0
import numpy as np
from PIL import Image

from opendino.eval import _depth_crops as crops


class Same:
    """An image whose red value is its depth."""

    def __init__(self, height, width):
        self.depth = (np.arange(height * width).reshape(height, width) % 251).astype(np.float32)
        self.image = np.repeat(self.depth[..., None] / 255, 3, axis=2).astype(np.float32)

    def __len__(self):
        return 1

    def both(self, index, *, training):
        return self.image, self.depth


def test_published_cuts():
    image, depth = Image.new("RGB", (1242, 375)), np.arange(375 * 1242, dtype=np.float32).reshape(375, 1242)
    cut, part = crops.cut_published("kitti", image, depth, training=False)
    assert cut.size == (1216, 352)
    np.testing.assert_array_equal(part, depth[23:, 13:1229])
    image, depth = Image.new("RGB", (640, 480)), np.zeros((480, 640), np.float32)
    assert crops.cut_published("nyu", image, depth, training=True)[1].shape == (426, 565)
    assert crops.cut_published("nyu", image, depth, training=False)[1].shape == (480, 640)
    assert crops.cut_published("pairs", image, depth, training=True)[1].shape == (480, 640)


def test_image_and_depth_stay_together():
    train = Same(30, 40)
    views = [crops.random_view(train, i, "", (16, 20), np.random.default_rng(i)) for i in range(6)]
    for image, depth in views:
        assert depth.shape == (16, 20)
        np.testing.assert_allclose(image[..., 0] * 255, depth, atol=1e-4)
    assert len({depth.tobytes() for _, depth in views}) == 6


def test_turning_leaves_the_centre_and_brings_in_no_depth():
    depth = np.full((41, 41), 3.0, np.float32)
    depth[20, 20] = 7
    image, turned = crops.turned(Image.fromarray((depth * 20).astype(np.uint8)).convert("RGB"), depth, 20.0)
    assert turned[20, 20] == 7
    assert set(np.unique(turned)) == {0, 3, 7}
    assert turned[0, 0] == 0
    assert image.getpixel((20, 20))[0] > 100


def test_colours_stay_colours():
    image = Image.new("RGB", (4, 4), (100, 150, 200))
    found = {crops.coloured(image, np.random.default_rng(i)).getpixel((0, 0)) for i in range(10)}
    assert len(found) > 5
    assert all(60 < red < 145 and red < green < blue for red, green, blue in found)
