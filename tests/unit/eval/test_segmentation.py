# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, jaccard_score

from opendino.eval import _segmentation as seg


def test_figures_worked_by_hand():
    # Class 0: 3 right, 1 called 1. Class 1: 2 right, 1 called 0. Class 2 nowhere. One pixel is not counted.
    target = torch.tensor([0, 0, 0, 0, 1, 1, 1, seg.IGNORE])
    called = torch.tensor([0, 0, 0, 1, 1, 1, 0, 2])
    matrix = seg.confusion(called, target, 3)
    assert matrix.tolist() == [[3, 1, 0], [1, 2, 0], [0, 0, 0]]
    found = seg.figures(matrix)
    assert found["mIoU"] == pytest.approx(100 * (3 / 5 + 2 / 4) / 2)
    assert found["mAcc"] == pytest.approx(100 * (3 / 4 + 2 / 3) / 2)
    assert found["aAcc"] == pytest.approx(100 * 5 / 7)
    iou = seg.class_iou(matrix)
    assert iou[:2] == pytest.approx([60, 50])
    assert math.isnan(iou[2])


def test_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    target, called = rng.integers(0, 6, (2, 40, 50))
    called = np.where(rng.random((40, 50)) < 0.6, target, called)
    matrix = seg.confusion(torch.from_numpy(called), torch.from_numpy(target), 6)
    np.testing.assert_array_equal(matrix.numpy(), confusion_matrix(target.ravel(), called.ravel()))
    wanted = jaccard_score(target.ravel(), called.ravel(), average="macro")
    assert seg.figures(matrix)["mIoU"] == pytest.approx(100 * wanted)


def test_sizes_follow_the_shorter_and_the_longer_limit():
    picture = Image.new("RGB", (480, 360))
    assert seg.scaled(picture, 512, 2048).size == (683, 512)
    assert seg.scaled(Image.new("RGB", (100, 10)), 512, 2048).size == (2048, 205)
    mask = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(seg.scaled_mask(mask, (6, 8)), mask.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(seg.scaled_mask(mask.repeat(3, 0).repeat(3, 1), (3, 4)), mask)


def test_crops_look_for_more_than_one_class():
    mask = np.zeros((40, 40), np.int64)
    mask[20:, 20:] = 1
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(50):
        top, left = seg.random_crop(mask, 16, rng)
        shares.append(mask[top : top + 16, left : left + 16].mean())
    mixed = np.mean([0.25 < share < 0.75 for share in shares])
    assert mixed > 0.5  # a single draw finds such a place in about one case of five


def test_a_picture_and_its_mask_stay_together():
    # The red value of every pixel is its class, so that whatever happens to one is seen in the other.
    mask = np.random.default_rng(0).integers(0, 5, (12, 16))
    pixels = np.zeros((12, 16, 1), np.float32)
    pixels[..., 0] = mask / 10
    for seed in range(8):
        rng = np.random.default_rng(seed)
        image, cut = seg.augmented(pixels, mask, short=0, long=0, ratio=(1.0, 1.0), crop=8, rng=rng)
        assert cut.shape == (8, 8)
        np.testing.assert_allclose(image[..., 0] * 10, cut, atol=1e-5)
    picture = Image.fromarray(np.zeros((12, 16, 3), np.uint8))
    image, cut = seg.augmented(
        picture, mask, short=24, long=100, ratio=(0.5, 2.0), crop=20, rng=np.random.default_rng(3)
    )
    assert image.size == cut.shape[::-1]
    full, classes = seg.to_square(torch.ones(3, *cut.shape), cut, 20)
    assert full.shape == (3, 20, 20)
    assert (classes >= 0).sum() == cut.size == full[0].sum()


def test_colours_change_and_shapes_do_not():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
    results = {seg.distort(picture, np.random.default_rng(i)).tobytes() for i in range(80)}
    assert len(results) > 20
    assert picture.tobytes() in results  # one case of sixteen changes nothing
