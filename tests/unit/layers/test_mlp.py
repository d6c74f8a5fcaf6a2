# SPDX-License-Identifier: Apache-2.0
import math

import torch

from opendino.layers.mlp import Mlp


def test_gelu_is_the_exact_one():
    mlp = Mlp(1, 1)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.fill_(1.0)
        mlp.fc1.bias.zero_()
        mlp.fc2.bias.fill_(0.5)
    for x in (-3.0, -0.7, 0.0, 0.2, 2.5):
        wanted = x * 0.5 * (1 + math.erf(x / math.sqrt(2))) + 0.5
        assert abs(mlp(torch.tensor([[x]])).item() - wanted) < 1e-6


def test_parameters():
    shapes = {name: tuple(p.shape) for name, p in Mlp(3, 5).state_dict().items()}
    assert shapes == {"fc1.weight": (5, 3), "fc1.bias": (5,), "fc2.weight": (3, 5), "fc2.bias": (3,)}
    assert set(Mlp(3, 5, bias=False).state_dict()) == {"fc1.weight", "fc2.weight"}
