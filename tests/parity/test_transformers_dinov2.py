# SPDX-License-Identifier: Apache-2.0
"""The backbone against transformers' own DINOv2 with the same random weights, float32 on the CPU, 1e-5."""

import pytest
import torch
import torch.nn.functional as F

from opendino.models.presets import create

transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")

TOLERANCE = {"atol": 1e-5, "rtol": 0}
SMALL = {"embed_dim": 128, "depth": 3, "num_heads": 2}

# official name -> transformers' name; {} is the block's number
TOP = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
IN_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
IN_BLOCK_5 = {"attn.proj": "attention.o_proj", "mlp.w3": "mlp.down_proj"}
IN_BLOCK_4 = {"attn.proj": "attention.output.dense", "mlp.w3": "mlp.weights_out", "mlp.w12": "mlp.weights_in"}
SPLIT_5 = {
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
}
SPLIT_4 = {"attn.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))}


def to_transformers(state, *, new_names):
    in_block = IN_BLOCK | (IN_BLOCK_5 if new_names else IN_BLOCK_4)
    split = SPLIT_5 if new_names else SPLIT_4
    out = {}
    for name, value in state.items():
        if name in TOP:
            out[TOP[name]] = value
            continue
        stem, _, kind = name.rpartition(".")
        if stem in TOP:
            out[f"{TOP[stem]}.{kind}"] = value
            continue
        _, number, inside = name.split(".", 2)
        layer, stem = f"encoder.layer.{number}.", inside.rpartition(".")[0]
        if inside in in_block:
            out[layer + in_block[inside]] = value
        elif stem in split:
            for target, part in zip(split[stem], value.chunk(len(split[stem])), strict=True):
                out[f"{layer}{target}.{kind}"] = part
        else:
            out[f"{layer}{in_block[stem]}.{kind}"] = value
    return out


def randomise(model):
    """Nothing is zero, one or symmetric, so that a wrong order or a forgotten part shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
                parameter.normal_(1.0, 0.3)
            elif name.endswith(("token", "tokens", "pos_embed")):
                parameter.normal_(std=0.1)
            elif name.endswith("bias"):
                parameter.normal_(std=0.05)
            else:
                parameter.normal_(std=0.04)
    return model.eval()


def pair(preset, **overrides):
    """The same weights as our model and as transformers'."""
    ours = randomise(create(preset, **overrides))
    settings = {
        "hidden_size": ours.embed_dim,
        "num_hidden_layers": ours.depth,
        "num_attention_heads": ours.num_heads,
        "image_size": ours.grid[0] * ours.patch_size,
        "patch_size": ours.patch_size,
        "use_swiglu_ffn": "blocks.0.mlp.w12.weight" in ours.state_dict(),
        "attn_implementation": "eager",
    }
    if ours.num_register_tokens:
        config = transformers.Dinov2WithRegistersConfig(**settings, num_register_tokens=ours.num_register_tokens)
        theirs = transformers.Dinov2WithRegistersModel(config)
    else:
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**settings))
    new_names = "encoder.layer.0.attention.q_proj.weight" in theirs.state_dict()
    theirs.load_state_dict(to_transformers(ours.state_dict(), new_names=new_names), strict=True)
    return ours, theirs.eval()


@torch.no_grad()
def compare(ours, theirs, x, masks=None):
    features = ours.forward_features(x, masks)
    out = theirs(x, bool_masked_pos=masks, output_hidden_states=True)
    tokens = [features[key] for key in ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens")]
    found = torch.cat([tokens[0][:, None], *tokens[1:]], dim=1)
    assert found.std() > 0.5, "weights too tame to show a difference"
    torch.testing.assert_close(found, out.last_hidden_state, **TOLERANCE)
    torch.testing.assert_close(ours(x) if masks is None else tokens[0], out.pooler_output, **TOLERANCE)
    return out


@pytest.mark.parametrize("overrides", [{}, {"ffn_layer": "swiglu"}], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("masked", [False, True])
def test_plain_model_at_its_own_size(overrides, masked):
    ours, theirs = pair("vits14", **SMALL, **overrides)
    masks = torch.rand(2, 37 * 37) > 0.6 if masked else None
    compare(ours, theirs, torch.randn(2, 3, 518, 518), masks)


@pytest.mark.parametrize("overrides", [{}, {"ffn_layer": "swiglu"}], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("size", [(98, 98), (224, 224), (518, 518), (224, 336)], ids=str)
def test_register_model(size, overrides):
    ours, theirs = pair("vits14_reg4", **SMALL, **overrides)
    compare(ours, theirs, torch.randn(2, 3, *size))
    if size == (224, 336):
        compare(ours, theirs, torch.randn(2, 3, *size), torch.rand(2, 16 * 24) > 0.6)


def test_vit_small():
    compare(*pair("vits14"), torch.randn(1, 3, 518, 518))
    ours, theirs = pair("vits14_reg4")
    for size in ((98, 98), (224, 224), (518, 518), (224, 336)):
        compare(ours, theirs, torch.randn(1, 3, *size))


@torch.no_grad()
def test_intermediate_layers():
    ours, theirs = pair("vits14_reg4", **SMALL)
    x = torch.randn(2, 3, 224, 336)
    hidden = theirs(x, output_hidden_states=True).hidden_states[1:]
    for n, wanted in ((3, (0, 1, 2)), ([2, 0], (0, 2))):
        raw = ours.get_intermediate_layers(x, n=n, reshape=True, return_class_token=True, norm=False)
        normed = ours.get_intermediate_layers(x, n=n)
        for i, (patches, cls), after_norm in zip(wanted, raw, normed, strict=True):
            expected = hidden[i][:, 5:]
            as_map = expected.reshape(2, 16, 24, -1).permute(0, 3, 1, 2)
            scale = {"atol": 1e-5 * float(hidden[i].abs().max().clamp(min=1)), "rtol": 0}
            torch.testing.assert_close(patches, as_map, **scale)
            torch.testing.assert_close(cls, hidden[i][:, 0], **scale)
            torch.testing.assert_close(after_norm, theirs.layernorm(expected), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("size", [(98, 98), (224, 224), (546, 546), (224, 336)], ids=str)
def test_plain_model_at_other_sizes(size):
    """Official plain models resize by scale factor with 0.1 added; transformers' do not, so the formula is put in.

    The table is resized as published and handed to transformers as that of a model made for this grid; positions
    enter before the first block only, so everything else is theirs.
    """
    ours, theirs = pair("vits14", **SMALL)
    h, w = size[0] // 14, size[1] // 14
    table = ours.pos_embed[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    factors = ((h + 0.1) / 37, (w + 0.1) / 37)
    table = F.interpolate(table, scale_factor=factors, mode="bicubic", align_corners=False)
    assert table.shape[-2:] == (h, w)
    published = torch.cat([ours.pos_embed[:, :1], table.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    x = torch.randn(2, 3, *size)
    before = theirs(x).last_hidden_state
    theirs.embeddings.interpolate_pos_encoding = lambda *_: published
    compare(ours, theirs, x)
    assert (before - theirs(x).last_hidden_state).abs().max() > 1e-2, "the two rules should differ"
