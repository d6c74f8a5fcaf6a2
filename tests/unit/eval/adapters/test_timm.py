# SPDX-License-Identifier: Apache-2.0
"""A model of the shape that timm gives always; timm itself where it is installed."""

import sys
import types

import pytest
import torch
from torch import nn

from opendino.errors import ConfigError
from opendino.eval.adapters import open_backbone
from opendino.eval.adapters.timm import adapt, open_model


class Stand(nn.Module):
    """What a vision transformer of timm looks like from outside."""

    pretrained_cfg = types.MappingProxyType({"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3})

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 4, 4)
        self.patch_embed.patch_size = (4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.norm = nn.LayerNorm(8)

    def forward_features(self, x):
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1)))


def test_tokens_are_split_as_the_library_gives_them():
    model = Stand()
    seen, x = adapt(model), torch.randn(2, 3, 16, 16)
    tokens = model.forward_features(x)
    torch.testing.assert_close(seen.forward_features(x)["x_norm_clstoken"], tokens[:, 0])
    torch.testing.assert_close(seen.forward_features(x)["x_norm_patchtokens"], tokens[:, 1:])
    assert seen.input_spec.std == (0.5, 0.5, 0.5)


def test_names_go_to_the_library(monkeypatch):
    def create_model(name, pretrained, num_classes, **settings):
        if "dynamic_img_size" in settings and name == "conv":
            raise TypeError
        if name == "nonsense":
            raise RuntimeError("Unknown model (nonsense)")
        return Stand()

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    assert not open_backbone("timm:vit").fixed_size
    assert open_backbone("timm:conv").fixed_size
    with pytest.raises(ConfigError, match=r"timm:nonsense: timm cannot open it \(Unknown model"):
        open_backbone("timm:nonsense")
    with pytest.raises(ConfigError, match="names no model"):
        open_backbone("timm:")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm:vit: needs timm, .*pip install timm"):
        open_backbone("timm:vit")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "vit_small_patch14_reg4_dinov2"])
def test_timm_itself(name):
    timm = pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    seen = open_model(name, pretrained=False)
    x = torch.randn(1, 3, *seen.input_spec.size)
    model = timm.create_model(name, pretrained=False, num_classes=0)
    model.load_state_dict(seen.tower.state_dict())
    tokens = model.eval().forward_features(x)
    flat = tokens if tokens.ndim == 3 else tokens.flatten(2).transpose(1, 2)
    patches = seen.forward_features(x)["x_norm_patchtokens"]
    torch.testing.assert_close(patches, flat[:, -patches.shape[1] :], rtol=0, atol=1e-4)
