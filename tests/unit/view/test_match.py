# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from PIL import Image

from opendino.errors import ConfigError, DataError
from opendino.models.vision_transformer import VisionTransformer
from opendino.view.match import Match, MatchConfig, draw, match, run, spread


def test_shuffled_patches_are_found_again():
    first = torch.randn(3, 4, 16)
    order = torch.randperm(12)
    second = first.flatten(0, 1)[order].view(4, 3, 16) * 3
    found = match(first, second)
    assert len(found) == 12
    for pair in found:
        row, column = int(pair.first[1] * 3), int(pair.first[0] * 4)
        row2, column2 = int(pair.second[1] * 4), int(pair.second[0] * 3)
        torch.testing.assert_close(second[row2, column2], 3 * first[row, column])
        assert pair.score == pytest.approx(1, abs=1e-5)


def test_only_mutual_ones_within_the_masks():
    a = torch.tensor([[[1.0, 0.0], [0.9, 0.1]]])
    b = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert [pair.first[0] for pair in match(a, b)] == [0.25]  # both of a like the first of b, which likes one
    assert [pair.first[0] for pair in match(a, b, torch.tensor([[False, True]]))] == [0.75]
    assert match(a, b, None, torch.tensor([[False, False]])) == []


def test_matches_spread():
    pairs = [Match((x, 0.5), (0.5, 0.5), 1 - x) for x in (0.1, 0.15, 0.35, 0.9)]
    assert [pair.first[0] for pair in spread(pairs, 10, 2.0, 10)] == [0.1, 0.35, 0.9]
    assert len(spread(pairs, 1, 0.0, 10)) == 1


def test_lines_go_from_one_to_the_other():
    white = Image.new("RGB", (100, 50), "white")
    made = draw(white, white, [Match((0.5, 0.5), (0.5, 0.5), 1.0)])
    assert made.size == (212, 50)
    coloured = [x for x in range(212) if made.getpixel((x, 25)) != (255, 255, 255)]
    assert min(coloured) == pytest.approx(46, abs=1)
    assert max(coloured) == pytest.approx(166, abs=1)


def test_two_images_are_wanted(tmp_path):
    backbone = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="give two or more"):
        run(backbone, [str(tmp_path / "a.png")], MatchConfig(device="cpu"))
    with pytest.raises(ConfigError, match="count"):
        MatchConfig(count=0)
