# SPDX-License-Identifier: Apache-2.0
"""Each module against its formula, and against the layers of the package where they say the same."""

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

from opendino.hf._layers import (
    Dinov2Attention,
    Dinov2DropPath,
    Dinov2Embeddings,
    Dinov2Encoder,
    Dinov2Layer,
    Dinov2MLP,
    Dinov2SelfAttention,
    Dinov2SwiGLUFFN,
    mask_for,
)
from opendino.hf.configuration import Dinov2Config, Dinov2WithRegistersConfig
from opendino.hf.errors import InputError
from opendino.layers.mlp import Mlp
from opendino.layers.swiglu import SwiGLU

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 42, "patch_size": 14}


def config_of(registers=False, **fields):
    return (Dinov2WithRegistersConfig if registers else Dinov2Config)(**{**TINY, **fields})


def randomised(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval()


def embeddings_of(registers=False, **fields):
    return randomised(Dinov2Embeddings(config_of(registers, **fields)))


@pytest.mark.parametrize("registers", [False, True])
def test_tokens_are_cls_registers_patches(registers):
    embed = embeddings_of(registers)
    x = torch.randn(2, 3, 42, 42)
    tokens = embed(x)
    first = 1 + 4 * registers
    table = embed.position_embeddings[0]
    assert tokens.shape == (2, first + 9, 32)
    torch.testing.assert_close(tokens[:, 0], (embed.cls_token[0, 0] + table[0]).expand(2, -1))
    if registers:
        torch.testing.assert_close(tokens[:, 1:5], embed.register_tokens.expand(2, -1, -1))
    # patch (row 1, column 2) by hand: its pixels times the kernel, plus bias and its entry of the table
    kernel, bias = embed.patch_embeddings.projection.weight, embed.patch_embeddings.projection.bias
    patch = torch.einsum("bchw,dchw->bd", x[:, :, 14:28, 28:42], kernel) + bias
    torch.testing.assert_close(tokens[:, first + 5], patch + table[1 + 5], atol=1e-4, rtol=1e-4)


def test_mask_token_replaces_patches_before_positions():
    embed = embeddings_of()
    x = torch.randn(2, 3, 42, 42)
    masks = torch.zeros(2, 9, dtype=torch.bool)
    masks[0, 4] = masks[1, 0] = True
    plain, masked = embed(x), embed(x, masks)
    assert torch.equal(masked[0, 5], embed.mask_token[0] + embed.position_embeddings[0, 5])
    changed = (plain != masked).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, 5], [1, 1]]
    assert torch.equal(embed(x, masks.long()), masked)


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("switch", ["hf", "official", "timm"])
def test_position_tables_follow_their_source(switch, registers):
    embed = embeddings_of(registers, image_size=98, pos_embed_resize=switch)
    h, w = 5, 4
    square = embed.position_embeddings[:, 1:].reshape(1, 7, 7, 32).permute(0, 3, 1, 2)
    if registers or switch == "timm":
        want = F.interpolate(square, size=(h, w), mode="bicubic", antialias=True)
    elif switch == "hf":
        want = F.interpolate(square, size=(h, w), mode="bicubic")
    else:
        want = F.interpolate(square, scale_factor=((h + 0.1) / 7, (w + 0.1) / 7), mode="bicubic")
    got = embed._positions((h, w))
    torch.testing.assert_close(got[:, 1:], want.flatten(2).transpose(1, 2), atol=2e-6, rtol=0)
    assert torch.equal(got[:, 0], embed.position_embeddings[:, 0])
    assert embed._positions((7, 7)) is embed.position_embeddings


def test_the_switch_can_be_turned_at_run_time():
    embed = embeddings_of()
    x = torch.randn(1, 3, 28, 70)
    hf = embed(x)
    embed.config.pos_embed_resize = "timm"
    assert (embed(x) - hf).abs().max() > 1e-3


def test_non_square_image_size():
    embed = embeddings_of(image_size=(28, 70))
    assert embed.position_embeddings.shape == (1, 1 + 2 * 5, 32)
    assert embed._positions((2, 5)) is embed.position_embeddings
    rows = embed.position_embeddings[:, 1:].reshape(1, 2, 5, 32).permute(0, 3, 1, 2)
    want = F.interpolate(rows, size=(4, 3), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed._positions((4, 3))[:, 1:], want, atol=2e-6, rtol=0)


def test_patches_may_be_rectangles_and_leave_a_rest():
    embed = embeddings_of(patch_size=(14, 7))
    assert embed(torch.randn(1, 3, 42, 42)).shape == (1, 1 + 3 * 6, 32)
    x = torch.randn(1, 3, 50, 45)
    assert torch.equal(embed(x), embed(x[:, :, :42, :42]))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda e: e(torch.randn(1, 4, 42, 42)), "with 3 channels"),
        (lambda e: e(torch.randn(1, 3, 42, 42), torch.zeros(1, 8, dtype=torch.bool)), r"wanted \(1, 9\)"),
    ],
)
def test_inputs_that_do_not_fit(call, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        call(embeddings_of())
    assert isinstance(caught.value, ValueError)


def test_masks_without_a_mask_token():
    embed = embeddings_of(use_mask_token=False)
    assert embed.mask_token is None
    with pytest.raises(InputError, match="use_mask_token is False"):
        embed(torch.randn(1, 3, 42, 42), torch.zeros(1, 9, dtype=torch.bool))


def test_pixels_take_the_type_of_the_weights():
    embed = embeddings_of().to(torch.bfloat16)
    assert embed(torch.randn(1, 3, 28, 28)).dtype == torch.bfloat16


def attention_by_hand(layer, x, seen=None):
    q, k, v = (part(x)[0].reshape(-1, 4, 8) for part in (layer.query, layer.key, layer.value))
    out, weights = torch.zeros_like(q), torch.zeros(4, len(q), len(q))
    for head in range(4):
        scores = q[:, head] @ k[:, head].T / math.sqrt(8)
        if seen is not None:
            scores[:, ~seen] = -torch.inf
        weights[head] = scores.softmax(-1)
        out[:, head] = weights[head] @ v[:, head]
    return out.reshape(1, -1, 32), weights[None]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_its_formula(implementation):
    layer = randomised(Dinov2SelfAttention(config_of()))
    layer.config._attn_implementation = implementation
    x = torch.randn(1, 6, 32)
    want, weights = attention_by_hand(layer, x)
    got, seen = layer(x)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert (seen is None) == (implementation == "sdpa")
    got, seen = layer(x, output_attentions=True)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen, weights)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masked_tokens_are_not_seen(implementation):
    layer = randomised(Dinov2SelfAttention(config_of()))
    layer.config._attn_implementation = implementation
    x, seen = torch.randn(1, 6, 32), torch.tensor([True, True, False, True, False, True])
    got, _ = layer(x, seen[None].long())
    torch.testing.assert_close(got, attention_by_hand(layer, x, seen)[0], atol=1e-5, rtol=1e-5)


def test_masks_in_their_own_form_pass():
    query = torch.randn(2, 1, 3, 4)
    four = torch.zeros(2, 1, 3, 3)
    two = torch.ones(2, 3, dtype=torch.long)
    assert mask_for(None, "sdpa", query) is None
    assert mask_for(four, "eager", query) is four
    assert mask_for(two, "flash_attention_2", query) is two
    assert mask_for(two, "sdpa", query).dtype == torch.bool
    block = mask_for(two, "flex_attention", query)
    assert block.shape == (2, 1, 3, 3)


def test_output_projection_follows():
    layer = randomised(Dinov2Attention(config_of()))
    x = torch.randn(2, 6, 32)
    mixed, _ = layer.attention(x)
    assert torch.equal(layer(x)[0], F.linear(mixed, layer.output.dense.weight, layer.output.dense.bias))


def test_feed_forward_layers_are_those_of_the_package():
    x = torch.randn(2, 5, 32)
    ours, theirs = randomised(Dinov2MLP(config_of(mlp_ratio=1.5))), Mlp(32, 48)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    ours, theirs = randomised(Dinov2SwiGLUFFN(config_of())), SwiGLU(32, 128)
    names = {"weights_in": "w12", "weights_out": "w3"}
    theirs.load_state_dict({names[k.split(".")[0]] + "." + k.split(".")[1]: v for k, v in ours.state_dict().items()})
    assert ours.weights_out.in_features == 88  # ceil8(128 * 2 / 3)
    torch.testing.assert_close(ours(x), theirs(x))


def test_drop_path_keeps_the_expectation_and_whole_images():
    drop = Dinov2DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    out = drop.train()(x)
    per_image = out[:, 0, 0]
    assert torch.equal(out, per_image[:, None, None].expand_as(out))
    torch.testing.assert_close(per_image.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert abs((per_image > 0).float().mean() - 0.75) < 0.03  # four standard deviations
    assert drop.eval()(x) is x


def test_a_block_is_two_scaled_residuals():
    layer = randomised(Dinov2Layer(config_of()))
    x = torch.randn(2, 6, 32)
    half = x + layer.attention(layer.norm1(x))[0] * layer.layer_scale1.lambda1
    want = half + layer.mlp(layer.norm2(half)) * layer.layer_scale2.lambda1
    torch.testing.assert_close(layer(x), want)
    out, weights = layer(x, output_attentions=True)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 6))


def test_encoder_holds_only_what_is_wanted():
    encoder = randomised(Dinov2Encoder(config_of()))
    x = torch.randn(1, 6, 32)
    last, states, attentions = encoder(x, keep=range(4))
    assert list(states) == [0, 1, 2, 3]
    assert states[0] is x
    assert states[3] is last
    torch.testing.assert_close(encoder.layer[1](states[1]), states[2])
    assert attentions == ()
    _, states, attentions = encoder(x, output_attentions=True, keep=[2])
    assert list(states) == [2]
    assert len(attentions) == 3
