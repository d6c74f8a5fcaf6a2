# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.checkpoint.convert.timm import from_official, to_official
from opendino.errors import ConversionError


def test_all_but_the_mask_token_goes_there_and_back(state, assert_same):
    there = from_official(state)
    assert there.dropped == ("mask_token",)
    back = to_official(there.state)
    assert back.filled == ("mask_token",)
    assert torch.equal(back.state.pop("mask_token"), torch.zeros(1, 64))
    folded = {"cls_token", "pos_embed"} if "register_tokens" in state else set()
    kept = {name: tensor for name, tensor in state.items() if name not in folded | {"mask_token"}}
    assert_same({name: back.state[name] for name in back.state if name not in folded}, kept)


def test_from_timm_and_back_is_equal_to_the_bit(state, assert_same):
    theirs = from_official(state).state
    theirs["cls_token"][0, 0, :3] = torch.tensor([-0.0, 0.0, -0.0])
    assert_same(from_official(to_official(theirs).state).state, theirs)


def test_the_position_of_cls_is_added_to_it_in_register_models_only(draw):
    plain, registers = draw().state_dict(), draw(num_register_tokens=4).state_dict()
    assert torch.equal(from_official(plain).state["pos_embed"], plain["pos_embed"])
    out = from_official(registers).state
    assert torch.equal(out["cls_token"], registers["cls_token"] + registers["pos_embed"][:, :1])
    assert torch.equal(out["pos_embed"], registers["pos_embed"][:, 1:])
    assert torch.equal(out["reg_token"], registers["register_tokens"])


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [28, 56])
def test_features_survive_to_the_bit(draw, registers, size):
    model, other = draw(num_register_tokens=registers), draw(num_register_tokens=registers, depth=3)
    other.load_state_dict(to_official(from_official(model.state_dict()).state).state)
    images = torch.randn(2, 3, size, size)
    assert torch.equal(model(images), other(images))


def test_heads_are_said_to_be_dropped(draw):
    state = draw().state_dict()
    head = {"linear_head.weight": torch.randn(10, 128), "linear_head.bias": torch.randn(10)}
    assert from_official(state | head).dropped == ("mask_token", "linear_head.weight", "linear_head.bias")
    theirs = from_official(state).state | {"head.weight": torch.ones(2, 64), "head.bias": torch.ones(2)}
    assert to_official(theirs).dropped == ("head.weight", "head.bias")


@pytest.mark.parametrize("arguments", [{"ffn_layer": "identity"}, {"ffn_bias": False}])
def test_what_timm_has_no_place_for_is_refused(draw, arguments):
    with pytest.raises(ConversionError, match=r"missing blocks\.0\.mlp\.fc2\.bias"):
        from_official(draw(**arguments).state_dict())


def test_what_is_no_timm_model_is_refused(draw):
    theirs = from_official(draw().state_dict()).state
    with pytest.raises(ConversionError, match=r"unexpected blocks\.0\.attn\.q_norm\.weight"):
        to_official(theirs | {"blocks.0.attn.q_norm.weight": torch.ones(1)})
    del theirs["cls_token"]
    with pytest.raises(ConversionError, match="missing cls_token"):
        to_official(theirs)
