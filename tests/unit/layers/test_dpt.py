# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.layers.dpt import DPTHead, _Fusion, _Reassemble


@pytest.mark.parametrize(
    ("dim", "published"), [(384, 13_961_377), (768, 24_193_921), (1024, 34_190_017), (1536, 61_800_769)]
)
def test_published_numbers_of_parameters(dim, published):
    with torch.device("meta"):
        head = DPTHead(dim, 0.001)
    assert sum(p.numel() for p in head.parameters()) == published


def test_names_are_the_official_ones():
    with torch.device("meta"):
        names = set(DPTHead(64, 0.001).state_dict())
    for name in (
        "reassemble_blocks.projects.0.conv.weight", "reassemble_blocks.resize_layers.3.bias",
        "reassemble_blocks.readout_projects.2.0.weight", "convs.1.conv.weight", "fusion_blocks.0.project.conv.bias",
        "fusion_blocks.3.res_conv_unit1.conv1.conv.weight", "project.conv.bias", "conv_depth.head.4.bias",
    ):  # fmt: skip
        assert name in names
    assert not [name for name in names if "fusion_blocks.0.res_conv_unit1" in name]
    assert "convs.1.conv.bias" not in names
    assert "fusion_blocks.3.res_conv_unit1.conv1.conv.bias" not in names


def test_maps_are_brought_to_four_resolutions():
    out = _Reassemble(16)([(torch.randn(1, 16, 6, 4), torch.randn(1, 16)) for _ in range(4)])
    assert [tuple(x.shape[1:]) for x in out] == [(2, 24, 16), (4, 12, 8), (8, 6, 4), (16, 3, 2)]


def test_fusion_adds_and_doubles():
    fusion = _Fusion(first=False)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.zero_()
        fusion.project.conv.weight.copy_(torch.eye(256)[..., None, None])
    x, finer = torch.ones(1, 256, 2, 2), torch.full((1, 256, 3, 3), 2.0)  # another size: resized to x
    torch.testing.assert_close(fusion(x, finer), torch.full((1, 256, 4, 4), 3.0))


def test_depth_is_positive_and_feels_all_layers():
    torch.manual_seed(0)
    head = DPTHead(16, 0.5)
    torch.nn.init.constant_(head.conv_depth.head[4].bias, 1.0)
    maps = [(torch.randn(1, 16, 2, 4, requires_grad=True), torch.randn(1, 16, requires_grad=True)) for _ in range(4)]
    depth = head(maps)
    assert depth.shape == (1, 1, 32, 64)
    assert float(depth.detach().min()) >= 0.5
    depth.sum().backward()
    assert all(part.grad.abs().sum() > 0 for pair in maps for part in pair)
