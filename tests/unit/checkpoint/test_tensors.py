# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.checkpoint._tensors import as_float32, check_finite, check_ranks
from opendino.errors import ConversionError


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_floats_of_every_width_become_float32_with_their_values(dtype):
    wanted = torch.tensor([1.0, -0.5, 0.0, 224.0])  # exact in all of them
    found = as_float32("x", {"a": wanted.to(dtype)})["a"]
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_float32_is_not_copied():
    tensor = torch.ones(3)
    assert as_float32("x", {"a": tensor})["a"] is tensor


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_other_numbers_are_no_weights(dtype):
    state = {"norm.weight": torch.ones(2), "blocks.0.attn.qkv.weight": torch.ones(2).to(dtype)}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ConversionError, match=rf"x: .*these are not: blocks\.0\.attn\.qkv\.weight \({kind}\);"):
        as_float32("x", state)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_not_finite_are_named(value, dtype):
    state = {"a": torch.ones(2), "b.bias": torch.tensor([0.0, value]).to(dtype)}
    with pytest.raises(ConversionError, match=r"not all numbers are finite in b\.bias;"):
        as_float32("x", state)
    with pytest.raises(ConversionError, match=r"b\.bias"):
        check_finite("x", state)


def test_numbers_too_large_for_float32():
    with pytest.raises(ConversionError, match="not all numbers are finite in a;"):
        as_float32("x", {"a": torch.tensor([1e300], dtype=torch.float64)})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cls_token", ()),
        ("pos_embed", (5,)),
        ("backbone.mask_token", (1, 1, 2)),
        ("embeddings.position_embeddings", (3, 2)),
        ("blocks.0.mlp.fc1.weight", (4,)),
        ("blocks.0.attn.qkv.bias", ()),
        ("encoder.layer.0.layer_scale1.lambda1", ()),
    ],
)
def test_tensors_of_another_rank_are_named(name, shape):
    with pytest.raises(ConversionError, match=f"x: not the weights of a model: {name} "):
        check_ranks("x", {"norm.weight": torch.ones(2), name: torch.zeros(shape)})


def test_what_has_no_place_in_the_table_is_not_judged():
    check_ranks("x", {"student.steps": torch.tensor(3), "a_cls_token": torch.zeros(2), "norm.bias": torch.zeros(2)})
