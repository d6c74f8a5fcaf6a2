# SPDX-License-Identifier: Apache-2.0
"""What every model of transformers must do, for each of ours: save, load, batch, train, move, compute either way.

transformers' own common tests are run against these classes by hand (see `docs/how-to/hugging-face.md`); these are the
properties among them that matter to users, in our words.
"""

import copy

import pytest
import torch

pytest.importorskip("transformers")

import opendino
from opendino import hf

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "num_labels": 3,
    "layerscale_value": 0.5,
    "initializer_range": 0.1,
}
CLASSES = [
    hf.Dinov2Model,
    hf.Dinov2ForImageClassification,
    hf.Dinov2Backbone,
    hf.Dinov2WithRegistersModel,
    hf.Dinov2WithRegistersForImageClassification,
    hf.Dinov2WithRegistersBackbone,
]


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
def cls(request):
    return request.param


def build(cls, **fields):
    return cls(cls.config_class(**{**TINY, **fields})).eval()


def first(model, x):
    out = model(x)[0]
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("swiglu", [False, True])
def test_what_is_saved_is_loaded(cls, swiglu, tmp_path):
    model, x = build(cls, use_swiglu_ffn=swiglu), torch.randn(2, 3, 42, 56)
    model.save_pretrained(tmp_path / "inner")
    again, info = cls.from_pretrained(tmp_path, subfolder="inner", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not again.training
    assert again.config.to_dict().items() >= {k: model.config.to_dict()[k] for k in TINY if k != "num_labels"}.items()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert torch.equal(first(model, x), first(again, x))


def test_an_image_is_the_same_alone_and_in_a_batch(cls):
    model, x = build(cls), torch.randn(3, 3, 56, 56)
    torch.testing.assert_close(first(model, x[1:2]), first(model, x)[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_both_ways_of_attention_agree(cls, dtype, near):
    model, x = build(cls).to(dtype), torch.randn(2, 3, 56, 56, dtype=dtype)
    fused = first(model, x)
    model.set_attn_implementation("eager")
    assert fused.dtype == dtype
    torch.testing.assert_close(first(model, x), fused, atol=near, rtol=near)


def test_unknown_attention_is_refused(cls):
    model = build(cls)
    with pytest.raises(ValueError, match="attn_implementation"):
        model.set_attn_implementation("magic")


def test_every_weight_learns(cls):
    model, x = build(cls).train(), torch.randn(2, 3, 42, 42)
    first(model, x).square().sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name.split(".")[-1] for name in without} <= {"mask_token", "bias"}
    # of all biases, only those of the keys cannot matter: softmax does not see them
    assert all(".key." in name for name in without if name.endswith("bias"))


def test_empty_weights_are_drawn_when_told_to(cls):
    with torch.device("meta"):
        model = build(cls)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.init_weights()
    for module in model.modules():
        if hasattr(module, "_is_hf_initialized"):
            del module._is_hf_initialized
    model.apply(model._init_weights)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert torch.isfinite(first(model, torch.randn(1, 3, 56, 56))).all()


def test_copies_are_their_own(cls):
    model, x = build(cls), torch.randn(1, 3, 56, 56)
    other = copy.deepcopy(model)
    assert torch.equal(first(model, x), first(other, x))
    with torch.no_grad():
        other.base_model.embeddings.cls_token.add_(1)
    assert not torch.equal(first(model, x), first(other, x))


@pytest.mark.parametrize("rule", ["hf", "official", "timm"])
@pytest.mark.parametrize("registers", [False, True])
def test_the_native_backbone_opens_the_folder_and_agrees(registers, rule, tmp_path):
    model = build(hf.Dinov2WithRegistersModel if registers else hf.Dinov2Model, pos_embed_resize=rule)
    model.save_pretrained(tmp_path)
    native = opendino.load(str(tmp_path), positions=rule)
    x = torch.randn(2, 3, 42, 98)
    features = native.forward_features(x)
    tokens = model(x).last_hidden_state
    torch.testing.assert_close(tokens[:, 0], features["x_norm_clstoken"], atol=5e-6, rtol=0)
    torch.testing.assert_close(tokens[:, 1 + 4 * registers :], features["x_norm_patchtokens"], atol=5e-6, rtol=0)


SHAPES = {
    "s": (384, 12, 6, False, 22_056_576, 22_058_112),
    "b": (768, 12, 12, False, 86_580_480, 86_583_552),
    "l": (1024, 24, 16, False, 304_368_640, 304_372_736),
    "g": (1536, 40, 24, True, 1_136_480_768, 1_136_486_912),
}


@pytest.mark.parametrize("size", list(SHAPES))
def test_parameters_of_the_released_models(size):
    width, depth, heads, swiglu, plain, registers = SHAPES[size]
    fields = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "use_swiglu_ffn": swiglu,
        "image_size": 518,
        "patch_size": 14,
    }
    with torch.device("meta"):
        assert hf.Dinov2Model(hf.Dinov2Config(**fields)).num_parameters() == plain
        with_registers = hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**fields))
        assert with_registers.num_parameters() == registers
