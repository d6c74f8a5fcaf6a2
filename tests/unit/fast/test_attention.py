# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.fast import attention
from opendino.fast.attention import attend, weights


def by_the_formula(qkv, heads, bias=None):
    B, T, D3 = qkv.shape
    q, k, v = qkv.double().view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) + (0 if bias is None else bias)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, D3 // 3)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("at_once", [1, 200, 2**19], ids=["a few queries", "an image", "all"])
@pytest.mark.parametrize("shape", [(1, 70, 2), (5, 9, 3)])
def test_all_ways_are_the_formula(shape, dtype, close, at_once, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    B, T, heads = shape
    qkv = (torch.randn(B, T, 3 * heads * 8) / 2).to(dtype)
    torch.testing.assert_close(attend(qkv, heads).double(), by_the_formula(qkv, heads), atol=close, rtol=close)


def test_masks_and_weights():
    qkv = torch.randn(2, 6, 3 * 2 * 4)
    seen = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    seen[0, ..., 4:] = False
    added = torch.zeros(2, 1, 1, 6).masked_fill(~seen, -torch.inf)
    wanted = by_the_formula(qkv, 2, added)
    for bias in (seen, added):
        torch.testing.assert_close(attend(qkv, 2, bias).double(), wanted, atol=1e-5, rtol=1e-5)
        shares = weights(qkv, 2, bias)
        assert (shares[0, ..., 4:] == 0).all()
        torch.testing.assert_close(shares.sum(-1), torch.ones(2, 2, 6))
