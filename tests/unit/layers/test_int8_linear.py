# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from opendino import onednn
from opendino.errors import ModelError
from opendino.layers.int8_linear import GELU_FLOOR, ROWS_AT_ONCE, Int8Linear

pytestmark = pytest.mark.skipif(not onednn.int8_available(), reason="this processor has no fast 8-bit products")


def test_what_is_made_of_whole_steps_is_exact():
    weight = torch.randint(-127, 128, (6, 32)).float()
    weight[:, 0] = 127.0  # each output's largest weight is 127 steps of one
    x = torch.randint(-3, 4, (5, 32)).float()
    x[:, 1] = 127.0
    weight[:, 1] = 0.0
    bias = torch.arange(6.0)
    wanted = x.double() @ weight.double().T + bias
    assert torch.equal(Int8Linear(weight, bias)(x).double(), wanted.bfloat16().double())
    unsigned = torch.randint(0, 4, (5, 32)).float()
    unsigned[:, 1] = 255.0
    wanted = unsigned.double() @ weight.double().T + bias
    assert torch.equal(Int8Linear(weight, bias, floor=0.0)(unsigned).double(), wanted.bfloat16().double())


@pytest.mark.parametrize("activation", ["none", "gelu", "silu"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_error_is_about_a_hundredth(activation, bias):
    weight, x = torch.randn(48, 256) / 16, torch.randn(3, 7, 256)
    b = torch.randn(48) if bias else None
    wanted = onednn.FUNCTIONS[activation](F.linear(x, weight, b))
    error = Int8Linear(weight, b, activation=activation)(x).float() - wanted
    assert 1e-4 < error.square().mean().sqrt() / wanted.square().mean().sqrt() < 2e-2


def test_a_floor_doubles_the_resolution_of_what_gelu_gives():
    weight, x = torch.randn(64, 512) / 16, F.gelu(3 * torch.randn(64, 512))
    assert F.gelu(torch.linspace(-3, 0, 10_000)).min() > GELU_FLOOR
    wanted = F.linear(x, weight)
    with_floor, without = (
        (Int8Linear(weight, None, floor=floor)(x).float() - wanted).square().mean().sqrt()
        for floor in (GELU_FLOOR, None)
    )
    assert with_floor < 0.85 * without  # what the weights round off is the same in both


def test_no_row_changes_another():
    layer = Int8Linear(torch.randn(8, 16), torch.randn(8))
    x = torch.randn(2 * ROWS_AT_ONCE + 1, 16) * torch.logspace(-3, 3, 2 * ROWS_AT_ONCE + 1)[:, None]
    whole = layer(x)
    assert torch.equal(whole[40], layer(x[40]))
    assert torch.equal(whole[-3:], layer(x[-3:]))
    assert layer(x[:0]).shape == (0, 8)
    assert torch.equal(layer(torch.zeros(1, 16))[0], layer.bias.bfloat16())


def test_it_is_neither_moved_nor_saved():
    layer = Int8Linear(torch.randn(4, 8), None)
    assert layer.to("cpu").float() is layer
    with pytest.raises(ModelError, match="stays on cpu"):
        layer.to(torch.bfloat16)
    with pytest.raises(ModelError, match="cannot be saved"):
        layer.state_dict()
