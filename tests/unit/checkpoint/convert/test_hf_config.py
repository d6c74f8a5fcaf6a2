# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.checkpoint.convert._hf_config import labels_of, read, read_spec, write, write_spec
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
}


def test_published_base_model():
    config = write(ARGUMENTS, "x")
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
    arguments = {**ARGUMENTS, "num_register_tokens": 4, "ffn_layer": "swiglu", "img_size": [28, 42]}
    config = write(arguments, "x", ["cat", "dog"])
    assert config["model_type"] == "dinov2_with_registers"
    assert config["architectures"] == ["Dinov2WithRegistersForImageClassification"]
    assert config["use_swiglu_ffn"] is True
    assert config["id2label"] == {"0": "cat", "1": "dog"}
    assert labels_of(config, 2) == ("cat", "dog")
    assert labels_of(config, 3) is None
    assert read(config, "x")["img_size"] == (28, 42)


def test_ten_labels_keep_their_order():
    labels = tuple(f"class {i}" for i in range(12))
    assert labels_of(write(ARGUMENTS, "x", labels), 12) == labels


@pytest.mark.parametrize(
    "odd",
    [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-12}, {"patch_size": [14, 16]}],
    ids=lambda odd: next(iter(odd)),
)
def test_models_that_compute_something_else_are_refused(odd):
    with pytest.raises(ConversionError, match=next(iter(odd))):
        read({**write(ARGUMENTS, "x"), **odd}, "x")


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
