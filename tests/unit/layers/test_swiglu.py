# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from opendino.layers.swiglu import SwiGLU, swiglu_hidden_dim


@pytest.mark.parametrize(("plain", "gated"), [(4 * 1536, 4096), (4 * 1024, 2736), (4 * 64, 176)])
def test_published_widths(plain, gated):
    assert swiglu_hidden_dim(plain) == gated


def test_first_half_is_the_gate():
    layer = SwiGLU(1, 8)  # 8 * 2 / 3 -> 5 -> 8
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.w12.weight[0] = 2.0  # gate 0
        layer.w12.weight[8] = 3.0  # value 0
        layer.w12.bias[8] = 0.5
        layer.w3.weight[0, 0] = 1.0
        layer.w3.bias.fill_(0.25)
    x = 1.5
    wanted = (2 * x) / (1 + math.exp(-2 * x)) * (3 * x + 0.5) + 0.25
    assert abs(layer(torch.tensor([[x]])).item() - wanted) < 1e-5


def test_parameters_of_the_tiny_shape():
    shapes = {name: tuple(p.shape) for name, p in SwiGLU(64, 256).state_dict().items()}
    assert shapes == {"w12.weight": (352, 64), "w12.bias": (352,), "w3.weight": (64, 176), "w3.bias": (64,)}
    assert set(SwiGLU(64, 256, bias=False).state_dict()) == {"w12.weight", "w3.weight"}
