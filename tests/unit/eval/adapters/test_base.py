# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from opendino.errors import ModelError
from opendino.eval.adapters._base import MapAdapter, TokenAdapter, blocks_of
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer

SPEC = InputSpec.default((16, 16), 3)


def ours(registers=0):
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=64, depth=3, num_heads=1, num_register_tokens=registers
    ).eval()


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("norm", [False, True])
def test_our_own_backbone_seen_as_a_stranger_gives_its_own_features(registers, norm):
    backbone = ours(registers)
    seen = TokenAdapter(backbone, backbone, 8, SPEC)
    x = torch.randn(2, 3, 16, 24)
    assert (seen.depth, seen.embed_dim) == (3, 64)
    for given, wanted in zip(
        seen.get_intermediate_layers(x, [0, 2], reshape=True, return_class_token=True, norm=norm),
        backbone.get_intermediate_layers(x, [0, 2], reshape=True, return_class_token=True, norm=norm),
        strict=True,
    ):
        torch.testing.assert_close(given[0], wanted[0], rtol=0, atol=0)
        torch.testing.assert_close(given[1], wanted[1], rtol=0, atol=0)
    features = backbone.forward_features(x)
    for name, tensor in seen.forward_features(x).items():
        torch.testing.assert_close(tensor, features[name], rtol=0, atol=0)
    with pytest.raises(ModelError, match="a model of 3 does not have"):
        seen.get_intermediate_layers(x, 4)


class NoCls(nn.Module):
    """Tokens first, images second, no CLS, no final norm."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    def forward(self, x):
        return self.layers(self.embed(x).flatten(2).permute(2, 0, 1)).mean(0)


@pytest.mark.parametrize("images", [3, 16])  # as many images as tokens too
def test_without_cls_the_mean_patch_stands_for_it_whatever_comes_first(images):
    model = NoCls()
    seen = TokenAdapter(model, model, 4, SPEC, fixed_size=True)
    x = torch.randn(images, 3, 16, 16)
    features = seen.forward_features(x)
    patches = model.layers(model.embed(x).flatten(2).transpose(1, 2))
    torch.testing.assert_close(features["x_norm_patchtokens"], patches)
    torch.testing.assert_close(features["x_norm_clstoken"], patches.mean(1))
    with pytest.raises(ModelError, match=r"takes images of \(16, 16\) only"):
        seen.forward_features(torch.randn(1, 3, 32, 32))


def test_a_map_of_features_is_a_grid_of_patches():
    tower = nn.Conv2d(3, 6, 4, 4)
    seen = MapAdapter(tower, tower, SPEC)
    x = torch.randn(2, 3, 16, 24)
    assert (seen.embed_dim, seen.patch_size, seen.depth) == (6, 4, 1)
    (grid,) = seen.get_intermediate_layers(x, 1, reshape=True)
    torch.testing.assert_close(grid, tower(x))
    torch.testing.assert_close(seen.forward_features(x)["x_norm_clstoken"], tower(x).mean((2, 3)))


def test_what_cannot_be_seen_is_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    with pytest.raises(ModelError, match="gives no map of features"):
        MapAdapter(flat, flat, SPEC)
    assert blocks_of(nn.Conv2d(3, 4, 3)) is None
    conv = nn.Conv2d(3, 4, 3)
    with pytest.raises(ModelError, match="has no list of transformer blocks"):
        TokenAdapter(conv, conv, 8, SPEC)
    pooling = nn.Module()
    pooling.layers = nn.Sequential(nn.Linear(768, 8), nn.Linear(8, 8))
    with pytest.raises(ModelError, match="where 4 patch tokens were wanted"):
        TokenAdapter(pooling, lambda x: pooling.layers(x.flatten(1)[:, None]), 8, SPEC)
