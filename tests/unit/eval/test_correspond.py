# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.errors import ConfigError, DataError
from opendino.eval import correspond
from opendino.eval._features import FeatureConfig
from opendino.eval.correspond import CorrespondConfig, MatchConfig
from opendino.models.vision_transformer import VisionTransformer


def test_points_are_found_where_their_features_are():
    # Each pixel of the source has a direction of its own; the target is the source moved by 2 right, 1 down.
    source = torch.nn.functional.normalize(torch.randn(32, 6, 8), dim=0)
    target = source.roll((1, 2), (1, 2))
    points = torch.tensor([[0.5, 0.5], [3.5, 2.5]])
    torch.testing.assert_close(correspond.nearest_points(source, target, points), points + torch.tensor([2.0, 1.0]))


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(blocks).save(tmp_path / "a.png")
    Image.fromarray(np.roll(blocks, 16, 1)).save(tmp_path / "b.png")
    points = [[11.5, 11.5], [27.5, 19.5], [19.5, 35.5]]
    moved = [[x + 16, y] for x, y in points]
    pair = {"source": "a.png", "target": "b.png", "source_points": points, "target_points": moved}
    place = tmp_path / "pairs.json"
    place.write_text(json.dumps([pair, {**pair, "target_box": [0, 0, 16, 20]}]))
    return place


def test_a_moved_picture_is_found_again(file, tmp_path):
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=48, patch_size=8, embed_dim=64, depth=1, num_heads=1)
    with torch.no_grad():
        backbone.pos_embed.zero_()
        backbone.blocks[0].attn.proj.weight.zero_()  # a patch is what it shows, and nothing else
    config = CorrespondConfig(str(file), MatchConfig(short=48), FeatureConfig(device="cpu"))
    results = correspond.run(backbone, config, out=tmp_path / "out")
    # Five or all of six; within 13 pixels of 64 x 48, or 4 in the pair with a box, chance finds one in six at most.
    assert results.figures["PCK@0.2"] > 80
    assert results.data["points"] == 6
    assert results.figures["PCK@0.05"] <= results.figures["PCK@0.1"] <= 100


def test_mistakes_are_named(file, tmp_path):
    backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1)
    with pytest.raises(ConfigError, match="data is missing"):
        correspond.run(backbone, CorrespondConfig())
    rows = json.loads(file.read_text())
    rows[0]["source_points"].pop()
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="need equally many points"):
        correspond.read_pairs(file)
    file.write_text(json.dumps([{**rows[1], "target": "c.png"}]))
    with pytest.raises(DataError, match=r"c\.png: is missing"):
        correspond.read_pairs(file)
    file.write_text("{")
    with pytest.raises(DataError, match="is no list of pairs"):
        correspond.read_pairs(file)
    with pytest.raises(ConfigError, match="have to be positive"):
        MatchConfig(thresholds=())
