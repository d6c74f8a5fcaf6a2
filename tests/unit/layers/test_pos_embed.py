# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from opendino.errors import ModelError
from opendino.layers.pos_embed import resize_pos_embed

VARIANTS = [(0.1, False), (0.0, True), (0.0, False), (0.1, True)]
PIXELS = [(98, 98), (224, 224), (336, 336), (518, 518), (546, 546), (602, 602), (1092, 1092), (224, 336), (14, 28)]


def by_interpolate(table, grid, offset, antialias, source):
    patches = table[:, 1:].reshape(1, *source, -1).permute(0, 3, 1, 2)
    if offset:
        how = {"scale_factor": tuple((n + offset) / s for n, s in zip(grid, source, strict=True))}
    else:
        how = {"size": grid}
    patches = F.interpolate(patches, mode="bicubic", align_corners=False, antialias=antialias, **how)
    assert patches.shape[-2:] == grid
    return torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@pytest.mark.parametrize(("offset", "antialias"), VARIANTS)
@pytest.mark.parametrize("pixels", PIXELS, ids=str)
def test_equals_interpolate(pixels, offset, antialias):
    """White noise of the published spread, which shows position errors more than any trained table."""
    table = torch.randn(1, 1370, 8) * 0.02
    grid = (pixels[0] // 14, pixels[1] // 14)
    ours = resize_pos_embed(table, grid, offset=offset, antialias=antialias)
    if grid == (37, 37):
        assert ours is table
    else:
        wanted = by_interpolate(table, grid, offset, antialias, (37, 37))
        torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("offset", "antialias"), VARIANTS)
@pytest.mark.parametrize(("source", "grid"), [((3, 7), (5, 4)), ((1, 1), (3, 2)), ((2, 1), (1, 4)), ((16, 8), (8, 16))])
def test_equals_interpolate_for_other_tables(source, grid, offset, antialias):
    table = torch.randn(1, 1 + source[0] * source[1], 5)
    ours = resize_pos_embed(table, grid, offset=offset, antialias=antialias, source=source)
    torch.testing.assert_close(ours, by_interpolate(table, grid, offset, antialias, source), atol=3e-6, rtol=0)


@pytest.mark.parametrize(("offset", "antialias"), VARIANTS)
def test_gradient_equals_that_of_interpolate(offset, antialias):
    table = torch.randn(1, 26, 4, requires_grad=True)
    weights = torch.randn(1, 1 + 3 * 4, 4)
    ours = resize_pos_embed(table, (3, 4), offset=offset, antialias=antialias)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), table)
    (wanted,) = torch.autograd.grad((by_interpolate(table, (3, 4), offset, antialias, (5, 5)) * weights).sum(), table)
    torch.testing.assert_close(gradient, wanted, atol=3e-6, rtol=0)


@pytest.mark.parametrize(("offset", "antialias"), VARIANTS)
def test_a_constant_table_stays_constant(offset, antialias):
    out = resize_pos_embed(torch.full((1, 50, 2), 3.0), (5, 11), offset=offset, antialias=antialias)
    torch.testing.assert_close(out, torch.full((1, 56, 2), 3.0))


def test_published_loss_of_spread():
    """518 -> 224 pixels: the spread 0.020 falls to 0.0172 in plain and to 0.0071 in register models (facts 1.4)."""
    table = torch.randn(1, 1370, 384) * 0.02
    plain = resize_pos_embed(table, (16, 16), offset=0.1, antialias=False)[:, 1:].std().item()
    registers = resize_pos_embed(table, (16, 16), offset=0.0, antialias=True)[:, 1:].std().item()
    assert abs(plain - 0.0172) < 2e-4
    assert abs(registers - 0.0071) < 2e-4


def test_half_tables_are_resized_in_float32():
    table = torch.randn(1, 50, 4)
    for dtype in (torch.bfloat16, torch.float16):
        out = resize_pos_embed(table.to(dtype), (5, 5), offset=0.1, antialias=False)
        exact = resize_pos_embed(table.to(dtype).float(), (5, 5), offset=0.1, antialias=False)
        assert torch.equal(out, exact.to(dtype))


def test_autocast_changes_nothing():
    table = torch.randn(1, 50, 4)
    wanted = resize_pos_embed(table, (5, 5), offset=0.1, antialias=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resize_pos_embed(table, (5, 5), offset=0.1, antialias=False), wanted)


def test_inference_mode_first_and_training_after():
    """What is remembered between calls must not carry inference mode's marks."""
    table = torch.randn(1, 50, 4, requires_grad=True)
    with torch.inference_mode():
        resize_pos_embed(table, (6, 9), offset=0.1, antialias=False)
    resize_pos_embed(table, (6, 9), offset=0.1, antialias=False).sum().backward()
    assert table.grad is not None


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(ModelError, match=r"table of 12 patch positions does not fit a grid of 3x3; pass the grid"):
        resize_pos_embed(torch.zeros(1, 13, 2), (4, 4), offset=0.0, antialias=False)
    with pytest.raises(ModelError, match="does not fit a grid of 2x5"):
        resize_pos_embed(torch.zeros(1, 13, 2), (4, 4), offset=0.0, antialias=False, source=(2, 5))
