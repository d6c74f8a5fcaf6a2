# SPDX-License-Identifier: Apache-2.0
"""A tower of the shape that open_clip gives always; open_clip itself where it is installed."""

import sys
import types

import pytest
import torch
from torch import nn

from opendino.errors import ConfigError, ModelError
from opendino.eval.adapters import open_backbone
from opendino.eval.adapters.open_clip import CLIP_MEAN, adapt


class Stand(nn.Module):
    """What a vision transformer of open_clip looks like from outside: a projection at the end, ln_post before it."""

    def __init__(self):
        super().__init__()
        self.patch_size, self.image_size = (4, 4), (16, 16)
        self.conv1 = nn.Conv2d(3, 8, 4, 4)
        self.class_embedding = nn.Parameter(torch.randn(8))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.ln_post = nn.LayerNorm(8)
        self.proj = nn.Parameter(torch.randn(8, 2))

    def tokens(self, x):
        tokens = self.conv1(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(x), 1, 8), tokens], 1)
        for block in self.transformer.resblocks:
            tokens = block(tokens)
        return tokens

    def forward(self, x):
        return self.ln_post(self.tokens(x)[:, 0]) @ self.proj


def test_features_are_those_before_the_projection(monkeypatch):
    tower = Stand()
    fake = types.SimpleNamespace(create_model=lambda name, pretrained: types.SimpleNamespace(visual=tower))
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    seen, x = open_backbone("open_clip:ViT-B-32/openai"), torch.randn(2, 3, 16, 16)
    assert seen.fixed_size
    assert seen.input_spec.mean == CLIP_MEAN
    features = seen.forward_features(x)
    torch.testing.assert_close(features["x_norm_clstoken"] @ tower.proj, tower(x))
    torch.testing.assert_close(features["x_norm_patchtokens"], tower.ln_post(tower.tokens(x)[:, 1:]))


def test_what_cannot_be_opened(monkeypatch):
    with pytest.raises(ModelError, match="has no patches"):
        adapt(nn.Conv2d(3, 4, 3))

    def refuse(name, pretrained):
        raise RuntimeError("Model config for nonsense not found")

    monkeypatch.setitem(sys.modules, "open_clip", types.SimpleNamespace(create_model=refuse))
    with pytest.raises(ConfigError, match=r"open_clip:nonsense: cannot be opened \(Model config"):
        open_backbone("open_clip:nonsense")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match="pip install open_clip_torch"):
        open_backbone("open_clip:ViT-B-32")


def test_open_clip_itself():
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed", exc_type=ImportError)
    tower = open_clip.create_model("ViT-S-32-alt", pretrained=None).visual.eval()
    seen, x = adapt(tower), torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(seen.forward_features(x)["x_norm_clstoken"] @ tower.proj, tower(x), rtol=0, atol=1e-4)
