# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.checkpoint._architecture import arguments_of, assemble, infer
from opendino.errors import ConversionError
from opendino.models.presets import PRESETS, BackboneConfig
from opendino.models.vision_transformer import VisionTransformer

TINY = {"img_size": 28, "patch_size": 7, "embed_dim": 64, "depth": 2, "num_heads": 1}


def on_meta(**arguments):
    with torch.device("meta"):
        return VisionTransformer(**arguments)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "vit_custom"])
def test_every_preset_is_read_back_from_its_shapes(preset):
    arguments = BackboneConfig(preset).arguments()
    model = on_meta(**arguments)
    found = infer(preset, model.state_dict())
    wanted = {**arguments, "init_values": 1.0}
    assert {name: found[name] for name in wanted} == wanted
    twin = on_meta(**found)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    "change",
    [
        {"qkv_bias": False, "proj_bias": False, "ffn_bias": False},
        {"ffn_layer": "swiglu", "mlp_ratio": 2.5},
        {"ffn_layer": "swiglu", "ffn_bias": False},
        {"ffn_layer": "identity"},
        {"mlp_ratio": 1.37},
        {"in_chans": 7, "num_register_tokens": 3, "interpolate_antialias": False, "interpolate_offset": 0.1},
        {"img_size": (28, 56)},
        {"num_heads": 4},
        {"init_values": 0.5},
        {"img_size": 56, "interpolate_antialias": True, "interpolate_offset": 0.0},
    ],
)
def test_a_twin_gives_the_same_features(change):
    model = VisionTransformer(**{**TINY, **change}).eval()
    twin = assemble("twin", arguments_of(model), model.state_dict())
    images = torch.randn(2, model.in_chans, 35, 42)  # not the table's size: resizing must be the same too
    for name, tensor in model.forward_features(images).items():
        if tensor is not None:
            torch.testing.assert_close(twin.forward_features(images)[name], tensor, rtol=0, atol=0)


def test_reading_weights_draws_no_random_number():
    model = VisionTransformer(**TINY)
    before = torch.get_rng_state()
    assemble("x", arguments_of(model), model.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_weights_open_in_float32():
    model = VisionTransformer(**TINY).bfloat16()
    twin = assemble("x", arguments_of(model), model.state_dict())
    assert {parameter.dtype for parameter in twin.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in twin.parameters())


def test_what_shapes_do_not_tell_is_asked_for():
    odd_width = on_meta(**{**TINY, "embed_dim": 96, "num_heads": 4}).state_dict()
    with pytest.raises(ConversionError, match=r"width 96 is not a multiple of 64.*num_heads="):
        infer("x.pth", odd_width)
    assert infer("x.pth", odd_width, {"num_heads": 4})["num_heads"] == 4
    oblong = on_meta(**{**TINY, "img_size": (28, 49)}).state_dict()
    with pytest.raises(ConversionError, match=r"28 patches, which is not a square; say .* img_size="):
        infer("x.pth", oblong)
    assert infer("x.pth", oblong, {"img_size": (28, 49)})["img_size"] == (28, 49)


def test_faults_name_the_file_and_the_keys():
    state = VisionTransformer(**TINY).state_dict()
    arguments = infer("x.pth", state)
    missing = {k: v for k, v in state.items() if k != "blocks.1.norm2.bias"}
    with pytest.raises(ConversionError, match=r"x.pth: does not fit .* lacks blocks.1.norm2.bias$"):
        assemble("x.pth", arguments, missing)
    with pytest.raises(ConversionError, match=r"has also extra.weight"):
        assemble("x.pth", arguments, {**state, "extra.weight": torch.zeros(1)})
    with pytest.raises(ConversionError, match=r"blocks.1.attn.qkv.weight is 3x64 where 192x64 is wanted"):
        assemble("x.pth", arguments, {**state, "blocks.1.attn.qkv.weight": torch.zeros(3, 64)})
    with pytest.raises(ConversionError, match=r"no tensor 'cls_token'.* these names came: conv.weight"):
        infer("x.pth", {"conv.weight": torch.zeros(1)})
