# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.checkpoint.convert.official import from_official, to_official
from opendino.errors import ConversionError


def chunked(state, size):
    """Names as official training writes them: blocks.{chunk}.{number of the block among all}."""
    out = {}
    for name, tensor in state.items():
        parts = name.split(".")
        out[".".join(["blocks", str(int(parts[1]) // size), *parts[1:]]) if parts[0] == "blocks" else name] = tensor
    return out


def teacher(state):
    heads = {f"{head}.last_layer.weight_g": torch.ones(4, 1) for head in ("dino_head", "ibot_head")}
    return {"teacher": {f"backbone.{name}": tensor for name, tensor in state.items()} | heads}


def test_released_file_goes_there_and_back(state, assert_same):
    there = to_official(state)
    assert there.dropped == there.filled == ()
    assert_same(there.state, state)
    assert_same(from_official(there.state).state, state)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_training_checkpoint_gives_the_teachers_backbone(state, assert_same, size):
    found = to_official(teacher(chunked(state, size)))
    assert_same(found.state, state)
    assert found.dropped == ("dino_head.last_layer.weight_g", "ibot_head.last_layer.weight_g")


def test_names_of_wrappers_are_taken_away(state, assert_same):
    wrapped = {
        f"module._orig_mod.{n.replace('blocks.1.', 'blocks.1._fsdp_wrapped_module.')}": t for n, t in state.items()
    }
    assert_same(to_official({"teacher": wrapped}).state, state)


def test_of_a_whole_training_state_the_teacher_is_taken(draw, assert_same):
    theirs, ours = draw().state_dict(), draw(depth=2).state_dict()
    content = {f"student.backbone.{n}": t for n, t in ours.items()} | {
        f"teacher.backbone.{n}": t for n, t in theirs.items()
    }
    content |= {"teacher.dino_head.mlp.0.weight": torch.ones(1), "dino_loss.center": torch.ones(1)}
    found = to_official({"model": content})
    assert_same(found.state, theirs)
    assert {"student.backbone.cls_token", "teacher.dino_head.mlp.0.weight", "dino_loss.center"} <= set(found.dropped)


def test_classifier_has_the_names_of_the_hubs(state, assert_same):
    head = {"linear_head.weight": torch.randn(10, 128), "linear_head.bias": torch.randn(10)}
    file = from_official(state | head).state
    assert {name.split(".")[0] for name in file} == {"backbone", "linear_head"}
    assert_same(to_official(file).state, state | head)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.ones(1), "bias": torch.ones(1)}, "a linear head without its backbone"),
        ({"a.b": torch.ones(1)}, "no backbone: missing cls_token; .* these came: a.b"),
        ({}, "no backbone"),
        ({"student.cls_token": torch.ones(1), "ema.cls_token": torch.ones(1)}, "2 backbones"),
        ({"epoch": 3, "cls_token": torch.ones(1)}, "not a state dict: epoch is a int"),
        ({"cls_token": torch.ones(1), "extra": torch.ones(1)}, "unexpected extra"),
        ({"backbone.cls_token": torch.ones(1), "extra": torch.ones(1)}, "unexpected extra beside the backbone"),
        (
            {"cls_token": torch.ones(1), "blocks.0.0.ls1.gamma": torch.ones(1), "blocks.1.0.ls1.gamma": torch.ones(1)},
            "both become",
        ),
    ],
)
def test_what_is_no_backbone_is_refused_by_name(content, message):
    with pytest.raises(ConversionError, match=message):
        to_official(content, "f.pth")
