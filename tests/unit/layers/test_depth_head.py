# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F

from opendino.layers.depth_head import LinearDepthHead, layers_of


@pytest.mark.parametrize(
    ("dim", "layers", "published"),
    [(384, 1, 196_864), (384, 4, 786_688), (768, 1, 393_472), (768, 4, 1_573_120),
     (1024, 1, 524_544), (1024, 4, 2_097_408), (1536, 1, 786_688), (1536, 4, 3_145_984)],
)  # fmt: skip
def test_published_numbers_of_parameters(dim, layers, published):
    head = LinearDepthHead(dim, layers, 0.001, 10.0)
    assert sum(p.numel() for p in head.parameters()) == published
    assert set(head.state_dict()) == {"conv_depth.weight", "conv_depth.bias"}


def test_depth_worked_by_hand():
    head = LinearDepthHead(1, 1, 1.0, 3.0, bins=3)
    maps = [(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1))]
    with torch.no_grad():
        head.conv_depth.bias.copy_(torch.tensor([-5.0, 0.0, 0.7]))
    # Weights relu + 0.1: 0.1, 0.1, 0.8 -> (0.1 + 0.2 + 2.4) / 1.
    torch.testing.assert_close(head(maps), torch.full((1, 1, 8, 8), 2.7))


def test_enlarging_before_or_after_the_convolution_is_the_same():
    head = LinearDepthHead(4, 2, 0.001, 10.0, bins=16)
    torch.nn.init.normal_(head.conv_depth.weight)
    maps = [(torch.randn(2, 4, 3, 5), torch.randn(2, 4)) for _ in range(2)]
    x = torch.cat([torch.cat([p, c[..., None, None].expand_as(p)], 1) for p, c in maps], 1)
    weights = head.conv_depth(F.interpolate(x, scale_factor=4, mode="bilinear")).relu() + 0.1
    bins = torch.linspace(0.001, 10, 16)[None, :, None, None]
    wanted = (weights * bins).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    torch.testing.assert_close(head(maps), wanted, rtol=0, atol=1e-4)


def test_published_layers():
    assert layers_of(12, 1) == [11]
    assert layers_of(12, 4) == [2, 5, 8, 11]
    assert layers_of(24, 4) == [4, 11, 17, 23]
    assert layers_of(40, 4) == [9, 19, 29, 39]
    for depth in (4, 6, 16, 32):
        layers = layers_of(depth, 4)
        assert layers[-1] == depth - 1
        assert sorted(set(layers)) == layers
