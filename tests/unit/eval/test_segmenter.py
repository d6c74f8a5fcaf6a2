# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from opendino.errors import ConfigError
from opendino.eval import _segmenter
from opendino.eval._features import FeatureConfig
from opendino.eval._masked import Masked, MaskedConfig
from opendino.eval._pixel_data import Pair, Pairs
from opendino.eval._segmentation import IGNORE
from opendino.eval._segmenter import HeadConfig, Linear, Neighbours, batch, patch_classes, rate
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture
def train(tmp_path):
    pairs, rng = [], np.random.default_rng(0)
    for i in range(4):
        mask = np.zeros((24, 24), np.uint8)
        mask[:, int(rng.integers(8, 16)) :] = 1
        pixels = np.where(mask[..., None] == 0, (200, 40, 40), (40, 40, 200)) + rng.integers(-20, 20, (24, 24, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / f"m{i}.png")
        pairs.append(Pair(str(i), tmp_path / f"{i}.png", tmp_path / f"m{i}.png"))
    return Masked(Pairs("here", pairs), MaskedConfig(), "pairs", 2)


@pytest.fixture
def backbone():
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1).eval()


SMALL = {"crop": 16, "stride": 12, "short": 0, "iterations": 15, "batch_size": 4, "lr": 0.02}
FEATURES = FeatureConfig(device="cpu", size=16)


def accuracy(segmenter, train):
    hits = []
    with torch.no_grad():
        for i in range(len(train)):
            image, mask = train.both(i)
            hits.append((segmenter.predict(image, mask.shape).numpy() == mask).mean())
    return float(np.mean(hits))


def test_a_linear_head_learns_colours(train, backbone):
    linear = Linear(backbone, HeadConfig(**SMALL, ratio=(1.0, 1.0)), FEATURES, 2)
    before = backbone.state_dict()["cls_token"].clone()
    linear.learn(train)
    linear.head.eval()
    assert accuracy(linear, train) > 0.9
    assert torch.equal(before, backbone.state_dict()["cls_token"])


def test_many_scales_and_both_sides_are_averaged(train, backbone, monkeypatch):
    monkeypatch.setattr(_segmenter, "_SCALES", (1.0, 1.32))
    linear = Linear(backbone, HeadConfig("ms", **{**SMALL, "short": 24, "iterations": 8}, layers=2), FEATURES, 2)
    linear.learn(train)
    linear.head.eval()
    assert linear.head.conv_seg.in_channels == 128
    seen = []
    real = linear.scores
    linear.scores = lambda images: seen.append(images.shape) or real(images)
    image, mask = train.both(0)
    with torch.no_grad():
        found = linear.predict(image, mask.shape)
        mirrored = linear.predict(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mask.shape)
    # Two scales with both sides each; 24 pixels have 4 windows, 32 have 9.
    assert len(seen) == 2 * 2 * (4 + 9)
    assert (found == mirrored.flip(1)).double().mean() > 0.98


def test_scales_are_of_the_images_own_size_where_none_is_set(train, backbone):
    own, set_to = (Linear(backbone, HeadConfig("ms", **{**SMALL, "short": n}, layers=2), FEATURES, 2) for n in (0, 24))
    image, _ = train.both(0)
    for scale, side in ((1.0, 24), (1.32, 32), (3.0, 72)):
        assert own._resized(image, scale).size == set_to._resized(image, scale).size == (side, side)


def test_patches_vote(train, backbone):
    neighbours = Neighbours(backbone, HeadConfig("knn", **SMALL, k=3), FEATURES, train, 2)
    assert len(neighbours.bank) == 4 * 36
    assert accuracy(neighbours, train) > 0.9
    fewer = Neighbours(backbone, HeadConfig("knn", **SMALL, patches=20), FEATURES, train, 2)
    assert len(fewer.bank) == 20


def test_batches_depend_on_the_step_alone(train, backbone):
    config = HeadConfig(**SMALL)
    transform = Linear(backbone, config, FEATURES, 2).transform
    first, again, other = (batch(train, transform, config, step) for step in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (4, 3, 16, 16)


def test_the_rate_rises_and_falls_in_straight_lines():
    assert rate(0, 100, 10) == pytest.approx(1e-6)
    assert rate(5, 100, 10) == pytest.approx(0.95 * (0.5 + 0.5e-6))
    assert rate(10, 100, 10) == 0.9
    assert rate(99, 100, 10) == pytest.approx(0.01)
    assert rate(0, 100, 0) == 1.0


def test_a_patch_is_what_most_of_its_pixels_are():
    mask = np.array([[0, 0, 2, IGNORE], [1, 0, IGNORE, IGNORE], [1, 1, -1, -1], [1, 0, -1, -1]])
    assert patch_classes(mask, (2, 2), 3).tolist() == [[0, 2], [1, IGNORE]]


def test_settings_that_make_no_sense(backbone):
    with pytest.raises(ConfigError, match="the model gives features of 2 layers only"):
        Linear(backbone, HeadConfig("ms"), FEATURES, 2)
    with pytest.raises(ConfigError, match="head=knn has no weights"):
        HeadConfig("knn", weights="x.pth")
    with pytest.raises(ConfigError, match="have to be positive"):
        HeadConfig(lr=0.0)
    with pytest.raises(ConfigError, match=r"segment\.warmup = 50 steps is longer"):
        HeadConfig(iterations=10, warmup=50)
    assert HeadConfig("ms").value("crop") == 640
    assert HeadConfig("linear", crop=320).value("crop") == 320
    assert _segmenter.HeadConfig().limits() == (0.5, 2.0)
