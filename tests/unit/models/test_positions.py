# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from opendino.errors import ConfigError, ModelError
from opendino.layers.pos_embed import resize_pos_embed
from opendino.models.positions import RULES, positions, rule_name, set_positions
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


def drawn(**arguments):
    model = VisionTransformer(img_size=56, patch_size=14, embed_dim=64, depth=2, num_heads=1, **arguments).eval()
    torch.nn.init.normal_(model.pos_embed)
    return model


@torch.no_grad()
@pytest.mark.parametrize("size", [42, 56, (28, 70)], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_a_baked_model_gives_the_same_features_at_its_size(rule, size):
    model = drawn()
    set_positions(model, rule)
    before = model.pos_embed.clone()
    baked = model.bake(size)
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, 3, height, width)
    assert torch.equal(baked(images), model(images))
    assert baked.grid == (height // 14, width // 14)
    assert torch.equal(model.pos_embed, before)
    assert not model.baked
    assert model(torch.randn(1, 3, 70, 70)).shape == (1, 64)
    with pytest.raises(ModelError, match=rf"84x84 pixels do not fit a model that is baked for {height}x{width}"):
        baked(torch.randn(1, 3, 84, 84))
    with pytest.raises(ModelError, match="bake: 84x84 pixels do not fit"):
        baked.bake(84)
    assert torch.equal(baked.bake(size)(images), baked(images))


@torch.no_grad()
def test_nothing_of_resizing_is_left_in_an_exported_program(no_shape_checks):
    model, images = drawn(num_register_tokens=4), torch.randn(1, 3, 42, 28)

    def operations(model):
        program = torch.export.export(model, (images,), strict=False)
        torch.testing.assert_close(program.module()(images), model(images))
        return [node.target for node in program.graph.nodes if node.op == "call_function"]

    plain, baked = operations(model), operations(model.bake((42, 28)))
    assert torch.ops.aten.matmul.default in plain
    assert torch.ops.aten.matmul.default not in baked
    assert len(baked) < len(plain)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_a_trace_of_a_baked_model_holds_its_table_as_it_is(no_shape_checks):
    model, images = drawn(), torch.randn(1, 3, 42, 42)
    traced, baked = torch.jit.trace(model, images), torch.jit.trace(model.bake(42), images)
    assert torch.equal(baked(images), model(images))
    assert "aten::arange" in str(traced.inlined_graph)
    assert "aten::arange" not in str(baked.inlined_graph)


def test_a_size_that_cannot_be_baked():
    with pytest.raises(ModelError, match="bake: 50x50 pixels are not a multiple of the patch size 14"):
        drawn().bake(50)


def test_a_baked_model_is_saved_as_one_made_for_that_size(tmp_path):
    from opendino.checkpoint.weights import load_weights, save_weights

    baked, images = drawn().bake((42, 70)), torch.randn(1, 3, 42, 70)
    again = load_weights(save_weights(baked, tmp_path / "w"))
    assert torch.equal(again(images), baked(images))
    assert not again.baked


@pytest.mark.parametrize("rule", list(RULES))
def test_a_rule_is_told_by_its_numbers(rule):
    assert rule_name(**positions(rule, False), registers=False) == rule
    assert positions(rule_name(**positions(rule, True), registers=True), True) == positions(rule, True)
    assert rule_name(0.1, True, registers=False) is None
