# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.checkpoint.convert._table import from_official, some, to_official
from opendino.errors import ConversionError

TABLE = {
    "cls_token": "embeddings.cls",
    "blocks.{n}.qkv.{p}": ("layer.{n}.q.{p}", "layer.{n}.k.{p}", "layer.{n}.v.{p}"),
    "blocks.{n}.gamma": "layer.{n}.lambda1",
}


def test_a_tensor_is_cut_in_the_order_of_the_table():
    out = from_official("x", {"blocks.12.qkv.bias": torch.arange(6.0)}, TABLE)
    assert {name: tensor.tolist() for name, tensor in out.items()} == {
        "layer.12.q.bias": [0, 1],
        "layer.12.k.bias": [2, 3],
        "layer.12.v.bias": [4, 5],
    }


def test_parts_are_joined_whatever_their_order_in_the_file():
    parts = {f"layer.0.{name}.weight": torch.full((1, 2), i) for i, name in ((2, "v"), (0, "q"), (1, "k"))}
    out = to_official("x", parts, TABLE)
    assert out["blocks.0.qkv.weight"].tolist() == [[0, 0], [1, 1], [2, 2]]


def test_unexpected_names_are_listed_up_to_eight_and_then_counted():
    with pytest.raises(ConversionError, match=r"^f\.pth: unexpected x0, x1, x2, x3, x4, x5, x6, x7 and 3 more; "):
        from_official("f.pth", {f"x{i}": torch.zeros(1) for i in range(11)}, TABLE)


def test_a_pattern_matches_whole_names_only():
    for name in ("a.cls_token", "cls_token2", "blocks.x.gamma", "blocks.1.qkv.scale", "blocks.1.gammas"):
        with pytest.raises(ConversionError, match=f"unexpected {name}"):
            from_official("f", {name: torch.zeros(1)}, TABLE)


def test_missing_parts_are_named():
    with pytest.raises(ConversionError, match=r"missing part 2 of 3 of blocks\.0\.qkv\.bias"):
        to_official("f", {"layer.0.q.bias": torch.zeros(1), "layer.0.v.bias": torch.zeros(1)}, TABLE)


def test_a_tensor_that_cannot_be_cut_evenly_is_named():
    with pytest.raises(ConversionError, match=r"blocks\.0\.qkv\.bias has 7 rows, which 3 equal parts"):
        from_official("f", {"blocks.0.qkv.bias": torch.zeros(7)}, TABLE)


def test_some():
    assert some(["a", "b"]) == "a, b"
    assert some(iter("abcd"), most=2) == "a, b and 2 more"
