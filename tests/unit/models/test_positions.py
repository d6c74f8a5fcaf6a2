# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from opendino.errors import ConfigError
from opendino.layers.pos_embed import resize_pos_embed
from opendino.models.positions import RULES, positions, set_positions
from opendino.models.vision_transformer import VisionTransformer

SIZES = [(98, 98), (224, 224), (336, 336), (518, 518), (546, 546), (602, 602), (1092, 1092), (224, 336)]


def as_published(rule, registers, table, grid):
    """What each library asks of torch.nn.functional.interpolate."""
    if tuple(table.shape[2:]) == grid:
        return table
    if registers or rule == "timm":
        return F.interpolate(table, size=grid, mode="bicubic", antialias=True, align_corners=False)
    if rule == "hf":
        return F.interpolate(table, size=grid, mode="bicubic", align_corners=False)
    factor = tuple((wanted + 0.1) / made for wanted, made in zip(grid, table.shape[2:], strict=True))
    return F.interpolate(table, scale_factor=factor, mode="bicubic", align_corners=False)


@pytest.mark.parametrize("source", [(37, 37), (16, 24)], ids=["square", "not-square"])
@pytest.mark.parametrize("registers", [False, True], ids=["plain", "registers"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_rule_is_what_its_library_asks_of_pytorch(rule, registers, size, source):
    table = 0.05 * torch.randn(1, 1 + source[0] * source[1], 6)
    chosen = positions(rule, registers)
    grid = (size[0] // 14, size[1] // 14)
    found = resize_pos_embed(
        table, grid, offset=chosen["interpolate_offset"], antialias=chosen["interpolate_antialias"], source=source
    )
    wanted = as_published(rule, registers, table[:, 1:].transpose(1, 2).reshape(1, 6, *source), grid)
    assert found.shape == (1, 1 + grid[0] * grid[1], 6)
    assert torch.equal(found[:, 0], table[:, 0])
    torch.testing.assert_close(found[:, 1:].transpose(1, 2).reshape(wanted.shape), wanted, atol=1e-6, rtol=0)


def test_a_model_follows_the_rule_it_is_given():
    model = VisionTransformer(img_size=56, patch_size=14, embed_dim=64, depth=1, num_heads=1).eval()
    image = torch.randn(1, 3, 42, 42)
    found = {}
    for rule in RULES:
        set_positions(model, rule)
        found[rule] = model(image)
    assert not torch.equal(found["official"], found["hf"])
    assert not torch.equal(found["hf"], found["timm"])
    native = torch.randn(1, 3, 56, 56)
    set_positions(model, "official")
    here = model(native)
    set_positions(model, "timm")
    assert torch.equal(here, model(native))


def test_register_models_have_one_rule_under_three_names():
    assert positions("official", True) == positions("hf", True) == positions("timm", True)


def test_an_unknown_rule_is_named():
    with pytest.raises(ConfigError, match="positions='dinov3' is not known; choose one of official, hf, timm"):
        positions("dinov3", False)
