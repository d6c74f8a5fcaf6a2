# SPDX-License-Identifier: Apache-2.0
import torch

from opendino.layers.layer_scale import LayerScale


def test_each_channel_has_its_own_factor():
    layer = LayerScale(3, 1e-5)
    assert layer.gamma.tolist() == torch.full((3,), 1e-5).tolist()
    with torch.no_grad():
        layer.gamma.copy_(torch.tensor([1.0, -2.0, 0.0]))
    assert layer(torch.tensor([[3.0, 4.0, 5.0]])).tolist() == [[3.0, -8.0, 0.0]]
    layer.reset_parameters()
    assert layer.gamma.tolist() == torch.full((3,), 1e-5).tolist()
