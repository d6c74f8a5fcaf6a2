# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

import opendino
from opendino.errors import ConfigError, ModelError
from opendino.models.presets import PRESETS, BackboneConfig, create
from opendino.models.vision_transformer import LIMITS, VisionTransformer

PUBLISHED = {  # all parameters, without the position table
    "vits14": (22_056_576, 21_530_496),
    "vits14_reg4": (22_058_112, 21_532_032),
    "vitb14": (86_580_480, 85_528_320),
    "vitb14_reg4": (86_583_552, 85_531_392),
    "vitl14": (304_368_640, 302_965_760),
    "vitl14_reg4": (304_372_736, 302_969_856),
    "vitg14": (1_136_480_768, 1_134_376_448),
    "vitg14_reg4": (1_136_486_912, 1_134_382_592),
}


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name):
    with torch.device("meta"):
        model = create(name)
    assert (count(model), count(model) - model.pos_embed.numel()) == PUBLISHED[name]
    assert model.grid == (37, 37)
    assert model.embed_dim // model.num_heads == 64
    assert torch.nn.LayerNorm.__name__ == type(model.norm).__name__
    assert model.input_spec.size == (224, 224)
    with_registers = name.endswith("_reg4")
    assert model.num_register_tokens == (4 if with_registers else 0)
    assert (model.interpolate_antialias, model.interpolate_offset) == ((True, 0.0) if with_registers else (False, 0.1))
    assert model.blocks[0].ls1.init_value == 1.0


def test_published_training_shapes():
    with torch.device("meta"):
        assert count(create("vitl16")) == 303_351_808
        assert count(create("vitl14", img_size=224, ffn_layer="swiglufused")) == 303_655_168


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name):
    with torch.device("meta"):
        model = BackboneConfig(name).build()
    assert isinstance(model, VisionTransformer)


def test_table_in_the_docstring_names_every_preset():
    import opendino.models.presets as module

    for name in PRESETS:
        assert name.removesuffix("_reg4") in module.__doc__


def test_overrides_win_and_none_keeps_the_preset():
    config = BackboneConfig("vits14_reg4", img_size=(28, 42), depth=2, in_chans=5, num_register_tokens=0)
    arguments = config.arguments()
    assert arguments["embed_dim"] == 384
    assert arguments["interpolate_antialias"] is True
    model = config.build()
    assert (model.depth, model.in_chans, model.register_tokens, model.grid) == (2, 5, None, (2, 3))
    assert model.input_spec.size == (28, 42)
    assert model.input_spec.channels == 5


def test_layer_scale_zero_removes_it():
    with torch.device("meta"):
        assert not [key for key in create("vits14", depth=1, init_values=0.0).state_dict() if "gamma" in key]
        assert create("vits14", depth=1, init_values=1e-5).blocks[0].ls2.init_value == 1e-5


def test_every_setting_reaches_the_model():
    """A setting without effect would leave the model of the defaults."""
    changes = {
        "img_size": 32,
        "patch_size": 32,
        "in_chans": 1,
        "embed_dim": 24,
        "depth": 1,
        "num_heads": 6,
        "mlp_ratio": 2.0,
        "qkv_bias": False,
        "ffn_bias": False,
        "proj_bias": False,
        "drop_path_rate": 0.2,
        "init_values": 1.0,
        "ffn_layer": "swiglu",
        "num_register_tokens": 1,
        "interpolate_antialias": True,
        "interpolate_offset": 0.0,
    }
    small = {"img_size": 64, "embed_dim": 12, "depth": 2, "num_heads": 3}

    def look(**overrides):
        with torch.device("meta"):
            model = create("vit_custom", **{**small, **overrides})
        settings = [model.patch_size, model.num_heads, model.interpolate_antialias, model.interpolate_offset]
        settings += [block.drop_path for block in model.blocks]
        return settings, [(name, p.shape) for name, p in model.named_parameters()]

    for name, value in changes.items():
        assert look(**{name: value}) != look(), name
    ramp = look(drop_path_rate=0.2, drop_path_uniform=False)[0][-2:]
    assert ramp == [0.0, 0.2]
    assert set(changes) | {"drop_path_uniform", "preset"} == set(BackboneConfig.__dataclass_fields__)


def test_public_name():
    assert opendino.create is create


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="preset 'vitx14' is not known; choose one of vits14"):
        create("vitx14")
    with pytest.raises(ConfigError, match="patchsize is not a setting of a backbone; the settings are img_size"):
        create("vits14", patchsize=14)
    with pytest.raises(ModelError, match="img_size: 500x500 pixels are not a multiple of the patch size 14"):
        create("vits14", img_size=500)


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_numbers_that_cannot_be(name):
    """Of a config, and of the model itself."""
    whole = name not in ("mlp_ratio", "drop_path_rate", "init_values", "interpolate_offset")
    for value in (-1, 10**6) if whole else (-1.0, math.nan, math.inf, 1e6):
        with pytest.raises(ConfigError, match=rf"^backbone\.{name} = .* is out of its range; use "):
            create("vit_custom", **{name: value})
        with pytest.raises(ModelError, match=rf"^VisionTransformer\.{name} = .* is out of its range; use "):
            VisionTransformer(**{name: value})


def test_a_feed_forward_layer_needs_a_width():
    with pytest.raises(ModelError, match=r"mlp_ratio=0\.001 leaves no hidden width of 8 channels"):
        VisionTransformer(embed_dim=8, num_heads=2, mlp_ratio=0.001)
