# SPDX-License-Identifier: Apache-2.0
"""Random models of transformers, from local folders."""

import json

import pytest
import torch

from opendino.checkpoint.conversion import ConvertConfig, convert
from opendino.checkpoint.weights import save_weights
from opendino.errors import ConfigError, ModelError
from opendino.eval.adapters import open_backbone
from opendino.eval.adapters.hf import adapt
from opendino.models.vision_transformer import VisionTransformer

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def saved(model, folder):
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]})
    )
    return open_backbone(f"hf:{folder}")


def test_dinov2_gives_what_our_own_gives(tmp_path):
    ours = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, init_values=0.5).eval()
    save_weights(ours, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "hf", ConvertConfig(to="hf"))
    theirs = open_backbone(f"hf:{tmp_path / 'hf'}")
    for given, wanted in zip(
        theirs.get_intermediate_layers(X, 2, return_class_token=True),
        ours.get_intermediate_layers(X, 2, return_class_token=True),
        strict=True,
    ):
        torch.testing.assert_close(given[0], wanted[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(given[1], wanted[1], rtol=0, atol=1e-5)


def test_vit_is_its_last_hidden_state_at_any_size(tmp_path):
    model = transformers.ViTModel(transformers.ViTConfig(intermediate_size=64, **SHAPE)).eval()
    seen = saved(model, tmp_path)
    assert seen.input_spec.mean == (0.5, 0.4, 0.3)
    assert (seen.patch_size, seen.depth, seen.embed_dim, seen.fixed_size) == (8, 2, 32, False)
    for x in (X, torch.randn(1, 3, 40, 48)):
        with torch.no_grad():
            wanted = model(x, interpolate_pos_encoding=True).last_hidden_state
            given = seen.forward_features(x)
        torch.testing.assert_close(given["x_norm_clstoken"], wanted[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(given["x_norm_patchtokens"], wanted[:, 1:], rtol=0, atol=1e-5)


def test_clip_keeps_the_tower_of_images_before_its_projection(tmp_path):
    vision = {"intermediate_size": 64, **SHAPE}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
            "vocab_size": 50}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    model = transformers.CLIPModel(config).eval()
    seen = saved(model, tmp_path)
    with torch.no_grad():
        pooled = model.vision_model(X).pooler_output
        given = seen.forward_features(X)
    torch.testing.assert_close(given["x_norm_clstoken"], pooled, rtol=0, atol=1e-5)
    assert given["x_norm_patchtokens"].shape == (2, 16, 32)
    # The hidden state of CLIP ends before the norm.
    ((patches, _),) = seen.get_intermediate_layers(X, 1, return_class_token=True, norm=False)
    with torch.no_grad():
        torch.testing.assert_close(patches, model.vision_model(X).last_hidden_state[:, 1:], rtol=0, atol=1e-5)


def test_siglip_has_no_cls(tmp_path):
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(intermediate_size=64, **SHAPE)).eval()
    seen = saved(model, tmp_path)
    with torch.no_grad():
        wanted = model(X).last_hidden_state
    given = seen.forward_features(X)
    torch.testing.assert_close(given["x_norm_patchtokens"], wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(given["x_norm_clstoken"], wanted.mean(1), rtol=0, atol=1e-5)


def test_a_network_of_convolutions_has_one_layer(tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetModel(config).eval()
    seen = saved(model, tmp_path)
    with torch.no_grad():
        wanted = model(X).last_hidden_state
    assert seen.depth == 1
    (grid,) = seen.get_intermediate_layers(X, 1, reshape=True)
    torch.testing.assert_close(grid, wanted)


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(ConfigError, match="transformers cannot open it"):
        open_backbone(f"hf:{tmp_path / 'nothing'}")
    bert = transformers.BertModel(
        transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    with pytest.raises(ModelError, match="no images for input"):
        adapt(bert)
