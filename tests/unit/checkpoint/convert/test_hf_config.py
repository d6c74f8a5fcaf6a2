# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.checkpoint.convert._hf_config import (
    claims,
    labels_of,
    read,
    read_spec,
    rule_of,
    wants_head,
    whole_ratio,
    write,
    write_spec,
)
from opendino.errors import ConversionError
from opendino.models.input_spec import InputSpec

ARGUMENTS = {
    "img_size": 518,
    "patch_size": 14,
    "in_chans": 3,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "ffn_layer": "mlp",
    "num_register_tokens": 0,
    "interpolate_offset": 0.0,
    "interpolate_antialias": False,
}


def test_published_base_model():
    config = write(ARGUMENTS)
    # what facebook/dinov2-base says, apart from the versions that wrote it
    wanted = {"hidden_size": 768, "image_size": 518, "layer_norm_eps": 1e-6, "layerscale_value": 1.0, "mlp_ratio": 4}
    wanted |= {"model_type": "dinov2", "num_attention_heads": 12, "patch_size": 14, "use_swiglu_ffn": False}
    wanted |= {"out_features": ["stage12"], "out_indices": [12], "architectures": ["Dinov2Model"]}
    assert wanted.items() <= config.items()
    assert isinstance(config["mlp_ratio"], int)
    assert config["stage_names"][:2] == ["stem", "stage1"]
    assert "num_register_tokens" not in config
    assert read(config, "x") == {"num_heads": 12, "img_size": 518}


def test_registers_gate_labels_and_a_table_that_is_not_square():
    arguments = {
        **ARGUMENTS,
        "num_register_tokens": 4,
        "interpolate_antialias": True,
        "ffn_layer": "swiglu",
        "img_size": [28, 42],
    }
    config = write(arguments, ["cat", "dog"])
    assert config["model_type"] == "dinov2_with_registers"
    assert config["architectures"] == ["Dinov2WithRegistersForImageClassification"]
    assert config["use_swiglu_ffn"] is True
    assert config["id2label"] == {"0": "cat", "1": "dog"}
    assert labels_of(config, 2, "x") == ("cat", "dog")
    assert labels_of({}, 3, "x") is None
    with pytest.raises(ConversionError, match="names 2 classes in id2label, the classifier has 3"):
        labels_of(config, 3, "x")
    assert read(config, "x")["img_size"] == (28, 42)


def test_ten_labels_keep_their_order():
    labels = tuple(f"class {i}" for i in range(12))
    assert labels_of(write(ARGUMENTS, labels), 12, "x") == labels


@pytest.mark.parametrize(
    "odd",
    [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-12}, {"patch_size": [14, 16]}],
    ids=lambda odd: next(iter(odd)),
)
def test_models_that_compute_something_else_are_refused(odd):
    with pytest.raises(ConversionError, match=next(iter(odd))):
        read({**write(ARGUMENTS), **odd}, "x")


def test_preprocessor_there_and_back():
    spec = InputSpec((224, 224), 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    written = write_spec(spec)
    assert written["size"] == {"shortest_edge": 256}
    assert written["resample"] == 3
    assert read_spec(written, 3) == spec
    other = InputSpec((98, 154), 5, (0.4,) * 5, (0.2,) * 5)
    assert read_spec(write_spec(other), 5) == other
    assert write_spec(other)["do_convert_rgb"] is False


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ({"crop_size": 224}, (224, 224)),
        ({"crop_size": {"height": 98, "width": 112}}, (98, 112)),
        ({"size": {"shortest_edge": 256}}, (256, 256)),
        ({"size": {"longest_edge": 256}}, None),
        ({}, None),
    ],
)
def test_preprocessors_of_other_ages(content, size):
    spec = read_spec({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **content}, 3)
    assert (spec.size if spec else None) == size


def test_a_preprocessor_for_other_channels_says_nothing():
    assert read_spec({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": 224}, 4) is None


@pytest.mark.parametrize(
    ("offset", "antialias", "registers", "rule"),
    [(0.1, False, 0, "official"), (0.0, True, 0, "timm"), (0.0, False, 0, None), (0.0, True, 4, None)],
)
def test_a_rule_that_is_not_transformers_own_is_written_and_read(offset, antialias, registers, rule):
    arguments = {**ARGUMENTS, "interpolate_offset": offset, "interpolate_antialias": antialias}
    config = write({**arguments, "num_register_tokens": registers})
    assert config.get("pos_embed_resize") == (rule if not registers else None)
    assert rule_of(config, "x") == (rule or "hf" if not registers else "hf")


def test_a_rule_that_does_not_exist():
    with pytest.raises(ConversionError, match=r"pos_embed_resize='dino' .*choose one of official, hf, timm"):
        rule_of({"pos_embed_resize": "dino"}, "x")


@pytest.mark.parametrize(
    ("layer", "ratio", "wanted"),
    [
        ("mlp", 4.0, 4),
        ("mlp", 2.5, 2.5),
        ("swiglu", 4.0, 4),
        # 768 * 3.99 = 3064 -> 2042.67 -> 2048, as 768 * 4 = 3072 -> 2048
        ("swiglu", 3.99, 4),
        ("swiglu", 2.5, 2.5),
    ],
)
def test_a_whole_ratio_where_one_gives_the_same_width(layer, ratio, wanted):
    assert whole_ratio({"embed_dim": 768, "ffn_layer": layer, "mlp_ratio": ratio}) == wanted
    assert write({**ARGUMENTS, "ffn_layer": layer, "mlp_ratio": ratio})["mlp_ratio"] == wanted


def test_what_a_file_claims():
    config = write({**ARGUMENTS, "ffn_layer": "swiglu"})
    stated = {"depth": 12, "embed_dim": 768, "in_chans": 3, "num_register_tokens": 0, "qkv_bias": True}
    assert claims(config) == {**stated, "patch_size": 14, "ffn_layer": "swiglu", "ffn_width": 2048}
    assert claims(write(ARGUMENTS))["ffn_width"] == 3072
    assert claims({"patch_size": [16, 16]}) == {"patch_size": 16}
    assert wants_head({"architectures": ["Dinov2ForImageClassification"]})
    assert not wants_head({"architectures": ["Dinov2Model"]})
    assert not wants_head({})
