# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from opendino.errors import ConfigError
from opendino.eval import segment
from opendino.eval._features import FeatureConfig
from opendino.eval._masked import MaskedConfig
from opendino.eval._segmenter import HeadConfig
from opendino.eval.segment import SegmentConfig
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture
def home(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for i in range(3):
            (tmp_path / part / "images").mkdir(parents=True, exist_ok=True)
            (tmp_path / part / "masks").mkdir(exist_ok=True)
            mask = np.zeros((18, 22), np.uint8)
            mask[int(rng.integers(6, 12)) :] = 1
            mask[:2, :2] = 9
            pixels = np.where(mask[..., None] == 1, (40, 40, 200), (200, 40, 40)) + rng.integers(-20, 20, (18, 22, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / part / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / part / "masks" / f"{i}.png")
    return tmp_path


@pytest.fixture
def backbone():
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1)


def config(home, data=None, **head):
    small = {"crop": 16, "stride": 12, "short": 0, "iterations": 12, "batch_size": 4, "lr": 0.02, "ratio": (1.0, 1.0)}
    data = {"train": str(home / "train"), "val": str(home / "val"), "ignore": (9,)} | (data or {})
    return SegmentConfig(MaskedConfig(**data), HeadConfig(**{**small, **head}), FeatureConfig(device="cpu", size=16))


def test_a_head_is_trained_measured_kept_and_read_again(home, backbone):
    results = segment.run(backbone, config(home), out=home / "out")
    assert results.figures["aAcc"] > 90
    assert results.data["classes"] == 2
    assert len(results.data["class_iou"]) == 2
    (head,) = (home / "out").glob("*.safetensors")
    read = config(home, {"train": "", "classes": 2}, weights=str(head))
    again = segment.run(backbone, read)
    assert again.figures == results.figures
    assert again.data["train_images"] == 0


def test_votes_of_several_layers_side_by_side(home, backbone):
    assert segment.run(backbone, config(home, head="knn", layers=2)).figures["aAcc"] > 90


def test_votes_need_no_training(home, backbone):
    results = segment.run(backbone, config(home, head="knn"), out=home / "out")
    assert results.figures["aAcc"] > 90
    assert not list((home / "out").glob("*.safetensors"))


def test_figures_do_not_depend_on_the_model_having_been_in_training(home, backbone):
    torch.manual_seed(0)
    first = segment.run(backbone.train(), config(home, head="knn"))
    assert backbone.training
    assert first.figures == segment.run(backbone.eval(), config(home, head="knn")).figures


def test_what_is_missing_is_named(home, backbone):
    with pytest.raises(ConfigError, match=r"data\.train is missing"):
        segment.run(backbone, config(home, {"train": ""}))
    with pytest.raises(ConfigError, match=r"data\.classes is missing"):
        segment.run(backbone, config(home, {"train": ""}, weights="x.pth"))
