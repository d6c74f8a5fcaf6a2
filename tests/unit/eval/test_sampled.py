# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from opendino.data.datasets import open_dataset
from opendino.eval._features import FeatureConfig
from opendino.eval._sampled import sampled
from opendino.models.vision_transformer import VisionTransformer

CPU = FeatureConfig(device="cpu")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_figures_of_a_sample_are_repeatable(folder):
    backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=2, num_heads=1).train()
    data = open_dataset(folder)
    first = sampled(backbone, data, CPU, images=4, views=2)
    assert backbone.training
    assert first == sampled(backbone.eval(), data, CPU, images=4, views=2)
    assert set(first) == {"patch_similarity", "patch_high_norm_share", "lidar", "alignment"}
    assert 0 < first["alignment"] < 4
    assert -1 <= first["patch_similarity"] <= 1


def test_a_model_that_sees_nothing(folder):
    backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1)
    with torch.no_grad():
        backbone.norm.weight.zero_()
        backbone.norm.bias.fill_(1.0)
    found = sampled(backbone, open_dataset(folder), CPU, images=4, views=2)
    assert found["patch_similarity"] == pytest.approx(1)
    assert found["alignment"] == pytest.approx(0, abs=1e-10)
    assert found["lidar"] == 0.0


def test_unreadable_images_are_passed_over(folder):
    backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1)
    for i in range(4):
        (folder / f"{i}.png").write_bytes(b"no picture")
    assert sampled(backbone, open_dataset(folder), CPU, images=5, views=2) == {}
