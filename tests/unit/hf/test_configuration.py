# SPDX-License-Identifier: Apache-2.0
"""The configs against the published fields, and the alignment of stages by hand."""

import json

import pytest

pytest.importorskip("transformers")

from opendino.errors import ConfigError
from opendino.hf.configuration import (
    Dinov2Config,
    Dinov2WithRegistersConfig,
    align_stages,
    check_shape,
    pair,
    resize_numbers,
)

STAGES = ["stem", "stage1", "stage2", "stage3"]
PUBLISHED = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
    "use_swiglu_ffn": False,
    "apply_layernorm": True,
    "reshape_hidden_states": True,
    "use_mask_token": True,
    "out_features": ["stage12"],
    "out_indices": [12],
    "stage_names": ["stem", *(f"stage{i}" for i in range(1, 13))],
    "model_type": "dinov2",
}


def test_defaults_are_the_published_ones():
    fields = Dinov2Config().to_dict()
    assert {name: fields[name] for name in PUBLISHED} == PUBLISHED
    assert not {"_out_features", "_out_indices"} & set(fields)


def test_registers_differ_where_published():
    plain, registers = Dinov2Config().to_dict(), Dinov2WithRegistersConfig().to_dict()
    changed = {k: registers.get(k) for k in plain | registers if plain.get(k) != registers.get(k)}
    assert changed == {
        "model_type": "dinov2_with_registers",
        "num_register_tokens": 4,
        "patch_size": 16,
        "use_mask_token": None,  # the field is not there
    }
    assert "use_mask_token" not in registers


@pytest.mark.parametrize(
    ("names", "numbers", "want"),
    [
        (None, None, (["stage3"], [3])),
        (["stem", "stage2"], None, (["stem", "stage2"], [0, 2])),
        (None, (1, 3), (["stage1", "stage3"], [1, 3])),
        (None, [-2, -1], (["stage2", "stage3"], [-2, -1])),
        (["stage1"], [1], (["stage1"], [1])),
        (["stage3"], [-1], (["stage3"], [-1])),
    ],
)
def test_stages_agree(names, numbers, want):
    assert align_stages(STAGES, names, numbers) == want


@pytest.mark.parametrize(
    ("names", "numbers", "complaint"),
    [
        (["stage4"], None, "no stages of this model"),
        (None, [4], "no stages of this model"),
        (None, [-5], "no stages of this model"),
        (["stage1", "stage2"], [0, 2], "name different stages"),
        (["stage2", "stage1"], None, "order of depth"),
        (None, [1, 1], "order of depth"),
        (None, [-1, 3], "order of depth"),
        ("stage1", None, r"write \['stage1'\]"),
    ],
)
def test_stages_that_do_not_agree(names, numbers, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        align_stages(STAGES, names, numbers)
    assert isinstance(caught.value, ValueError)


def test_setting_one_aligns_the_other():
    config = Dinov2Config(num_hidden_layers=3)
    config.out_features = ["stage1", "stage2"]
    assert config.out_indices == [1, 2]
    config.out_indices = (0, -1)
    assert config.out_features == ["stem", "stage3"]
    config.out_features = None
    assert config.out_indices == [3]


@pytest.mark.parametrize("cls", [Dinov2Config, Dinov2WithRegistersConfig])
def test_round_trip_through_a_folder(cls, tmp_path):
    config = cls(hidden_size=48, num_attention_heads=3, out_indices=[-2], num_labels=5, pos_embed_resize="official")
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["out_features"] == ["stage11"]
    again = cls.from_pretrained(tmp_path)
    assert again == config
    assert (again.out_indices, again.num_labels, again.pos_embed_resize) == ([-2], 5, "official")
    changed = cls.from_pretrained(tmp_path, out_features=["stage3"], pos_embed_resize="timm")
    assert (changed.out_indices, changed.pos_embed_resize) == ([3], "timm")


def test_equality_looks_at_every_field():
    assert Dinov2Config() == Dinov2Config()
    assert Dinov2Config() != Dinov2Config(hidden_size=384, num_attention_heads=6)
    assert Dinov2Config() != Dinov2WithRegistersConfig()

    class Mine(Dinov2Config):
        pass

    assert Mine() != Mine(num_hidden_layers=2)


def test_unknown_fields_are_kept():
    assert Dinov2Config(hidden_sizee=3).hidden_sizee == 3


def test_fractions_and_pairs():
    assert Dinov2Config(mlp_ratio=2.667).mlp_ratio == 2.667
    assert pair(14) == (14, 14)
    assert pair([28, 42]) == (28, 42)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"hidden_size": 100}, "no multiple of"),
        ({"num_hidden_layers": 0}, "a whole number"),
        ({"mlp_ratio": 0}, "a number above 0"),
        ({"image_size": 0}, "image_size=0, a side or"),
        ({"image_size": [56, -14]}, "image_size=\\[56, -14\\]"),
        ({"image_size": [56, 56, 56]}, "a side or"),
        ({"image_size": 13}, "image_size=13 holds no patch"),
        ({"patch_size": -14}, "patch_size=-14"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0, a share"),
        ({"hidden_dropout_prob": -0.1}, "hidden_dropout_prob=-0.1"),
        ({"layer_norm_eps": -1e-6}, "layer_norm_eps=-1e-06, a number from 0 on"),
        ({"mlp_ratio": float("nan")}, "a number above 0"),
        ({"pos_embed_resize": "officla"}, "choose one of official, hf, timm"),
    ],
)
def test_shapes_that_cannot_be_built(fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Dinov2Config(**fields)


def test_registers_are_counted():
    with pytest.raises(ConfigError, match="num_register_tokens=-1, a whole number from 0 on"):
        Dinov2WithRegistersConfig(num_register_tokens=-1)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("num_attention_heads", 7, "no multiple of num_attention_heads 7"),
        ("hidden_size", "768", "hidden_size='768', a whole number"),
        ("num_hidden_layers", True, "a whole number"),
        ("mlp_ratio", "4", "mlp_ratio='4', a number above 0"),
    ],
)
def test_fields_set_later_are_checked_too(name, value, complaint):
    config = Dinov2Config()
    setattr(config, name, value)
    with pytest.raises(ConfigError, match=complaint):
        check_shape(config)


def test_numbers_of_the_three_sources():
    assert resize_numbers("hf", registers=False) == (0.0, False)
    assert resize_numbers("official", registers=False) == (0.1, False)
    assert resize_numbers("timm", registers=False) == (0.0, True)
    assert {resize_numbers(switch, registers=True) for switch in ("hf", "official", "timm")} == {(0.0, True)}
