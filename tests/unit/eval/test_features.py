# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from opendino.data.datasets import open_dataset
from opendino.errors import ConfigError, DataError
from opendino.eval import _features
from opendino.eval._features import FeatureConfig, Features, extract, framing
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture(scope="module")
def backbone():
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_register_tokens=2)


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_features_are_those_of_each_image_alone(folder, backbone):
    dataset = open_dataset(folder)
    found = extract(backbone, dataset, FeatureConfig(batch_size=3))
    spec = backbone.input_spec
    for i in range(7):
        pixels = torch.from_numpy(np.asarray(dataset.image(i), np.float32) / 255)
        pixels = ((pixels - torch.tensor(spec.mean)) / torch.tensor(spec.std)).permute(2, 0, 1)
        with torch.no_grad():
            tokens = backbone.eval().forward_features(pixels[None])
        torch.testing.assert_close(found.cls[i], tokens["x_norm_clstoken"][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.patch_mean[i], tokens["x_norm_patchtokens"][0].mean(0), atol=1e-5, rtol=0)
    assert found.rows.tolist() == list(range(7))
    assert found.skipped == ()


@pytest.mark.parametrize("blocks", [1, 2])
def test_cls_alone_is_cls_beside_patches(folder, backbone, blocks, tmp_path_factory, monkeypatch):
    dataset = open_dataset(folder)
    both = extract(backbone, dataset, FeatureConfig(batch_size=3), blocks=blocks)
    kept = FeatureConfig(batch_size=3, cache=str(tmp_path_factory.mktemp("kept")))
    cached = extract(backbone, dataset, kept, blocks=blocks, patches=False)
    torch.testing.assert_close(cached.patch_mean, both.patch_mean, rtol=0, atol=0)  # for who comes next
    monkeypatch.setattr(VisionTransformer, "get_intermediate_layers", None)
    monkeypatch.setattr(VisionTransformer, "forward_features", None)
    alone = extract(backbone, dataset, FeatureConfig(batch_size=3), blocks=blocks, patches=False)
    assert alone.patch_mean is None
    torch.testing.assert_close(alone.cls, both.cls, rtol=1e-5, atol=1e-5)
    if blocks > 1:
        torch.testing.assert_close(alone.blocks, both.blocks, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="mean patches were not made"):
        alone.select("both", normalize=False)


def test_unreadable_images_are_skipped_and_named(folder, backbone, caplog):
    (folder / "2.png").write_bytes(b"no picture")
    (folder / "6.png").write_bytes(b"")
    whole = extract(backbone, open_dataset(folder), FeatureConfig(batch_size=2))
    assert whole.rows.tolist() == [0, 1, 3, 4, 5]
    assert [Path(name).name for name in whole.skipped] == ["2.png", "6.png"]
    assert caplog.text.count("skipped") == 2
    for i in (0, 1, 3, 4, 5):
        (folder / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of the 7 images could be read"):
        extract(backbone, open_dataset(folder))


def test_the_mode_of_the_backbone_comes_back(folder, backbone):
    dropping = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=64, depth=2, num_heads=1, drop_path_rate=0.5, init_values=1.0
    )
    dataset = open_dataset(folder)
    dropping.train()
    first, second = extract(dropping, dataset), extract(dropping, dataset)
    assert dropping.training
    torch.testing.assert_close(first.cls, second.cls, rtol=0, atol=0)
    assert not first.cls.requires_grad


def test_bfloat16_is_near(folder, backbone):
    dataset = open_dataset(folder)
    exact, rough = (extract(backbone, dataset, FeatureConfig(precision=p)) for p in ("fp32", "bf16"))
    assert rough.cls.dtype == torch.float32
    assert not torch.equal(exact.cls, rough.cls)
    assert float(F.cosine_similarity(exact.cls, rough.cls).min()) > 0.999


def test_kinds_of_features():
    features = Features(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 10.0]]), torch.tensor([0]))
    assert features.select("cls", normalize=False).tolist() == [[3, 4]]
    torch.testing.assert_close(features.select("patch_mean", normalize=True), torch.tensor([[0.0, 1.0]]))
    assert features.select("both", normalize=False).tolist() == [[3, 4, 0, 10]]
    both = features.select("both", normalize=True)
    torch.testing.assert_close(both, torch.tensor([[0.6, 0.8, 0.0, 1.0]]) / math.sqrt(2))
    assert float(both.norm()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("size", "patch", "config", "expected"),
    [
        (224, 14, FeatureConfig(), (224, 256)),  # published
        (224, 16, FeatureConfig(), (224, 256)),
        (518, 14, FeatureConfig(), (224, 256)),
        (40, 10, FeatureConfig(), (40, 40)),  # small pictures: no crop
        (224, 14, FeatureConfig(size=518), (518, 592)),
        (224, 14, FeatureConfig(size=230), (224, 256)),  # down to a multiple of the patch
        (224, 14, FeatureConfig(size=224, resize=224), (224, 224)),  # the published logistic regression
    ],
)
def test_framing(size, patch, config, expected):
    assert framing(InputSpec.default((size, size), 3), patch, config) == expected


def test_framing_that_makes_no_sense():
    spec = InputSpec.default((224, 224), 3)
    with pytest.raises(ConfigError, match=r"features.size = 10: smaller than the model's patch, 14"):
        framing(spec, 14, FeatureConfig(size=10))
    with pytest.raises(ConfigError, match=r"features.resize = 100: smaller than the crop of 224"):
        framing(spec, 14, FeatureConfig(resize=100))
    with pytest.raises(ConfigError, match="1 or more images"):
        FeatureConfig(batch_size=0)


def test_placing(backbone):
    assert next(_features.place(backbone, FeatureConfig(device="cpu")).parameters()).device.type == "cpu"
    with pytest.raises(ConfigError, match=r"features.device = nonsense: cannot be used here"):
        _features.place(backbone, FeatureConfig(device="nonsense"))


def test_workers_give_the_same(folder, backbone):
    dataset = open_dataset(folder)
    (folder / "3.png").write_bytes(b"no picture")
    alone, beside = (extract(backbone, dataset, FeatureConfig(batch_size=2, workers=w)) for w in (0, 2))
    torch.testing.assert_close(alone.cls, beside.cls, rtol=0, atol=0)
    assert alone.skipped == beside.skipped
