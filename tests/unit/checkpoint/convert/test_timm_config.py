# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.checkpoint.convert._timm_config import claims, read, read_spec, write
from opendino.models.input_spec import InputSpec
from opendino.models.presets import PRESETS, BackboneConfig

SPEC = InputSpec.default((224, 224), 3)
REST = {
    "in_chans": 3,
    "qkv_bias": True,
    "proj_bias": True,
    "mlp_ratio": 4.0,
    "ffn_layer": "mlp",
    "num_register_tokens": 0,
}
PUBLISHED = [name for name in PRESETS if name.startswith(("vits14", "vitb14", "vitl14", "vitg14"))]


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_models_are_an_architecture_and_nothing_else(preset):
    config = write({**REST, **BackboneConfig(preset).arguments()}, SPEC)
    size = {"s": "small", "b": "base", "l": "large", "g": "giant"}[preset[3]]
    assert config["architecture"] == f"vit_{size}_patch14_{'reg4_' if 'reg' in preset else ''}dinov2"
    assert "model_args" not in config
    assert config["pretrained_cfg"]["input_size"] == [3, 518, 518]
    arguments = BackboneConfig(preset).arguments()
    assert read(config) == {"img_size": (518, 518), "num_heads": arguments["num_heads"]}
    stated = claims(config)
    assert stated.pop("ffn_width") == (4096 if "vitg" in preset else 4 * arguments["embed_dim"])
    assert stated == {name: {**REST, **arguments}[name] for name in stated}
    assert len(stated) == 7
    assert read_spec(config, 3) == InputSpec((518, 518), 3, SPEC.mean, SPEC.std)


def test_other_shapes_say_what_differs():
    arguments = {**REST, **PRESETS["vits14_reg4"], "num_heads": 3, "img_size": [28, 42], "init_values": None}
    config = write({**arguments, "num_register_tokens": 2}, SPEC)
    assert config["architecture"] == "vit_small_patch14_reg4_dinov2"
    assert config["model_args"] == {"num_heads": 3, "img_size": [28, 42], "init_values": None, "reg_tokens": 2}
    assert read(config) == {"num_heads": 3, "img_size": (28, 42)}


@pytest.mark.parametrize("width", [64, 128, 192, 384, 1024])
def test_a_gated_layer_gets_a_ratio_that_timm_turns_into_the_same_width(width):
    arguments = {**REST, **PRESETS["vitg14"], "embed_dim": width}
    config = write(arguments, SPEC)
    assert config["architecture"] == "vit_giant_patch14_dinov2"
    ratio = config["model_args"].get("mlp_ratio", 2.66667 * 2)
    gated = (int(width * 4 * 2 / 3) + 7) // 8 * 8
    assert int(width * ratio) == 2 * gated


def test_a_file_that_says_little():
    assert read({"architecture": "x"}) == {}
    assert read_spec({"architecture": "x"}, 3) is None
    assert read_spec({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 28, 28]}}, 4) is None
