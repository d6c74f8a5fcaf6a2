# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.checkpoint.convert.hf import from_official, to_official
from opendino.errors import ConversionError


@pytest.mark.parametrize("in_memory", [False, True])
def test_there_and_back_is_equal_to_the_bit(state, assert_same, in_memory):
    there = from_official(state, in_memory=in_memory)
    assert there.dropped == there.filled == ()
    back = to_official(there.state)
    assert_same(back.state, state)
    assert back.dropped == back.filled == ()
    again = from_official(back.state, in_memory=in_memory).state
    assert_same(again, there.state)


def test_query_key_value_are_thirds_of_the_fused_layer(draw):
    state = draw().state_dict()
    fused = state["blocks.2.attn.qkv.weight"]
    out = from_official(state).state
    prefix = "encoder.layer.2.attention.attention"
    for i, name in enumerate(("query", "key", "value")):
        assert torch.equal(out[f"{prefix}.{name}.weight"], fused[64 * i : 64 * (i + 1)])


def test_gate_is_the_first_half_of_the_fused_layer(draw):
    state = draw(ffn_layer="swiglu").state_dict()
    fused = state["blocks.0.mlp.w12.weight"]
    out = from_official(state, in_memory=True).state
    assert torch.equal(out["encoder.layer.0.mlp.gate_proj.weight"], fused[: len(fused) // 2])
    assert torch.equal(out["encoder.layer.0.mlp.up_proj.weight"], fused[len(fused) // 2 :])


@pytest.mark.parametrize(("registers", "prefix"), [(0, "dinov2."), (4, "dinov2_with_registers.")])
def test_classifier_over_one_layer(draw, assert_same, registers, prefix):
    head = {"linear_head.weight": torch.randn(10, 128), "linear_head.bias": torch.randn(10)}
    state = draw(num_register_tokens=registers).state_dict() | head
    there = from_official(state)
    assert {name.split(".")[0] + "." for name in there.state} == {prefix, "classifier."}
    assert_same(to_official(there.state).state, state)


def test_classifier_over_four_layers_is_said_to_be_dropped(draw, assert_same):
    state = draw().state_dict()
    head = {"linear_head.weight": torch.randn(10, 320), "linear_head.bias": torch.randn(10)}
    there = from_official(state | head)
    assert there.dropped == ("linear_head.weight", "linear_head.bias")
    assert_same(there.state, from_official(state).state)


def test_missing_layer_scale_becomes_ones_and_is_said(draw):
    state = draw(init_values=None).state_dict()
    there = from_official(state)
    assert there.filled == tuple(f"encoder.layer.{i}.layer_scale{j}.lambda1" for i in range(3) for j in (1, 2))
    assert all(torch.equal(there.state[name], torch.ones(64)) for name in there.filled)


def test_missing_mask_token_becomes_zeros_and_is_said(draw):
    there = from_official(draw().state_dict()).state
    del there["embeddings.mask_token"]
    back = to_official(there)
    assert back.filled == ("mask_token",)
    assert torch.equal(back.state["mask_token"], torch.zeros(1, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ffn_layer": "identity"}, "no feed-forward layer with a bias"),
        ({"ffn_bias": False}, "no feed-forward layer with a bias"),
        ({"proj_bias": False}, "no bias in attention's output"),
    ],
)
def test_what_transformers_has_no_place_for_is_refused(draw, arguments, message):
    with pytest.raises(ConversionError, match=message):
        from_official(draw(**arguments).state_dict())


def test_unexpected_names_are_named(draw):
    there = from_official(draw().state_dict()).state
    with pytest.raises(ConversionError, match=r"unexpected encoder\.layer\.0\.attention\.rope"):
        to_official(there | {"encoder.layer.0.attention.rope": torch.ones(1)})
    with pytest.raises(ConversionError, match=r"unexpected embeddings\.extra beside 'dinov2\.'"):
        to_official({f"dinov2.{n}": t for n, t in there.items()} | {"embeddings.extra": torch.ones(1)})


def test_a_lost_part_of_a_fused_layer_is_named(draw):
    there = from_official(draw().state_dict()).state
    del there["encoder.layer.1.attention.attention.key.weight"]
    with pytest.raises(ConversionError, match=r"missing part 2 of 3 of blocks\.1\.attn\.qkv\.weight"):
        to_official(there)
