# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from opendino.errors import ModelError
from opendino.layers.packed_linear import PackedLinear

FUNCTIONS = {"none": lambda x: x, "gelu": F.gelu, "silu": F.silu}


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_packed_and_plain_are_the_formula(activation, bias, dtype, close):
    weight, b, x = torch.randn(24, 16) / 4, torch.randn(24), torch.randn(2, 5, 16)
    weight, b, x = weight.to(dtype), b.to(dtype) if bias else None, x.to(dtype)
    product = x.double() @ weight.double().T + (0 if b is None else b.double())
    for packed in (True, False):
        layer = PackedLinear(weight, b, dtype, activation=activation, packed=packed)
        torch.testing.assert_close(layer(x).double(), FUNCTIONS[activation](product), atol=close, rtol=close)


def test_weights_are_a_copy_that_stays_where_it_is():
    weight, x = torch.randn(4, 4), torch.randn(3, 4)
    for packed in (True, False):
        layer = PackedLinear(weight, None, torch.float32, packed=packed)
        wanted = layer(x).clone()
        weight += 1
        assert torch.equal(layer(x), wanted)
        assert layer.to("cpu").float() is layer
        with pytest.raises(ModelError, match="stays on cpu"):
            layer.to(torch.bfloat16)
        with pytest.raises(ModelError, match="cannot be saved"):
            layer.state_dict()
