# SPDX-License-Identifier: Apache-2.0
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.data.datasets import open_dataset
from opendino.eval import _cache, _features
from opendino.eval._features import FeatureConfig, extract
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture
def backbone():
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=3, num_heads=1)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def passes(monkeypatch):
    count = []
    real = _features.tokens_of
    monkeypatch.setattr(_features, "tokens_of", lambda *args: count.append(1) or real(*args))
    return count


def test_the_second_time_nothing_is_run(folder, tmp_path, backbone, monkeypatch, caplog):
    (folder / "3.png").write_bytes(b"no picture")
    config = FeatureConfig(cache=str(tmp_path / "kept"), batch_size=8)
    count = passes(monkeypatch)
    first = extract(backbone, open_dataset(folder), config)
    assert len(count) == 1
    with caplog.at_level(logging.INFO, "opendino"):
        second = extract(backbone, open_dataset(folder), config)
    assert len(count) == 1
    assert "4 features from" in caplog.text
    for name in ("cls", "patch_mean", "rows"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.skipped == second.skipped
    assert first.skipped[0].endswith("3.png")


def test_what_features_depend_on_makes_another_key(folder, backbone):
    data = open_dataset(folder)
    known = {_cache.key(backbone, data, 16, 16, "fp32", 1)}

    def differs(*changed):
        known.add(_cache.key(*changed))
        return len(known)

    assert differs(backbone, data, 16, 16, "fp32", 1) == 1
    assert differs(backbone, data, 8, 16, "fp32", 1) == 2
    assert differs(backbone, data, 16, 20, "fp32", 1) == 3
    assert differs(backbone, data, 16, 16, "bf16", 1) == 4
    assert differs(backbone, data, 16, 16, "fp32", 2) == 5
    with torch.no_grad():
        backbone.cls_token[0, 0, 0] += 1e-3
    assert differs(backbone, data, 16, 16, "fp32", 1) == 6
    backbone.interpolate_offset = 0.0
    assert differs(backbone, data, 16, 16, "fp32", 1) == 7
    Image.new("RGB", (16, 16)).save(folder / "2.png")
    assert differs(backbone, data, 16, 16, "fp32", 1) == 8
    (folder / "4.png").unlink()
    assert differs(backbone, open_dataset(folder), 16, 16, "fp32", 1) == 9


def test_blocks_are_those_of_the_backbone(folder, tmp_path, backbone):
    data = open_dataset(folder)
    config = FeatureConfig(cache=str(tmp_path / "kept"))
    one, three = extract(backbone, data, config), extract(backbone, data, config, blocks=3)
    again = extract(backbone, data, config, blocks=3)
    assert one.blocks is None
    assert torch.equal(three.blocks, again.blocks)
    torch.testing.assert_close(three.blocks[:, -1], one.cls, rtol=0, atol=1e-6)
    torch.testing.assert_close(three.patch_mean, one.patch_mean, rtol=0, atol=1e-6)
    images = torch.stack([_features.transform_of(backbone, config)(data.image(i)) for i in range(5)])
    with torch.no_grad():
        layers = backbone.eval().get_intermediate_layers(images, n=3, return_class_token=True)
    torch.testing.assert_close(three.blocks, torch.stack([cls for _, cls in layers], 1), rtol=0, atol=1e-5)


def test_a_broken_file_and_a_full_disk_cost_only_time(folder, tmp_path, backbone, caplog):
    data, config = open_dataset(folder), FeatureConfig(cache=str(tmp_path / "kept"))
    first = extract(backbone, data, config)
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(b"broken")
    assert torch.equal(extract(backbone, data, config).cls, first.cls)
    (tmp_path / "file").write_text("")
    extract(backbone, data, FeatureConfig(cache=str(tmp_path / "file" / "below")))
    assert "features are not kept" in caplog.text
    assert not _cache.wanted("off")
    assert not _cache.wanted("")
