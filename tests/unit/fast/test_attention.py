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
    torch.testing.assert_close(
        attend(*qkv.chunk(3, -1), heads).double(), by_the_formula(qkv, heads), atol=close, rtol=close
    )


@pytest.mark.parametrize("at_once", [1, 49 * 4, 2**19], ids=["a few queries", "an image and a bit", "all"])
@pytest.mark.parametrize("tokens", [1, 2, 7], ids=["CLS", "two", "all of them"])
def test_first_queries_and_a_bias_of_keys(tokens, at_once, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    qkv, bias = (torch.randn(3, 7, 3 * 3 * 8) / 2).bfloat16(), torch.randn(3, 1, 1, 7).bfloat16()
    q, k, v = qkv.chunk(3, dim=-1)
    found = attend(q[:, :tokens], k, v, 3, bias)
    wanted = by_the_formula(qkv, 3, bias.double())[:, :tokens]
    torch.testing.assert_close(found.double(), wanted, atol=2e-2, rtol=2e-2)


def test_a_trial_decides_and_without_one_all_processes_agree(monkeypatch):
    q, k, v = (torch.randn(2, 9, 3 * 2 * 8) / 2).bfloat16().chunk(3, dim=-1)
    taken = []
    monkeypatch.setattr(attention, "_in_parts", lambda q, *_: taken.append("written") or q)
    monkeypatch.setattr(attention, "_fused", lambda q, *_: taken.append("fused") or q)
    for answer in (True, False):
        monkeypatch.setattr(attention, "_trial", lambda *_, answer=answer: answer)
        for trial in (True, False):
            attend(q, k, v, 2, trial=trial)
        attend(q[:, :1], k, v, 2, trial=True)
        attend(q.float(), k.float(), v.float(), 2, trial=True)
    assert taken == ["written", "written", "written", "fused", "fused", "written", "written", "fused"]


def test_a_trial_takes_the_faster_way_if_it_is_right(monkeypatch):
    shape = (9, 2, 8)
    monkeypatch.setattr(attention, "seconds_of", lambda ways: [1.0 for _ in ways])
    assert attention._trial.__wrapped__(*shape)
    monkeypatch.setattr(attention, "seconds_of", lambda ways: [1.2, 1.0])
    assert not attention._trial.__wrapped__(*shape)
    monkeypatch.setattr(attention, "seconds_of", lambda ways: [0.5, 1.0])
    monkeypatch.setattr(attention, "_in_parts", lambda q, *_: q * torch.nan)
    assert not attention._trial.__wrapped__(*shape)
    assert attention.written_out_pays(9, 2, 8) in (True, False)


def test_masks_and_weights():
    qkv = torch.randn(2, 6, 3 * 2 * 4)
    seen = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    seen[0, ..., 4:] = False
    added = torch.zeros(2, 1, 1, 6).masked_fill(~seen, -torch.inf)
    wanted = by_the_formula(qkv, 2, added)
    for bias in (seen, added):
        torch.testing.assert_close(attend(*qkv.chunk(3, -1), 2, bias).double(), wanted, atol=1e-5, rtol=1e-5)
        shares = weights(*qkv.chunk(3, -1)[:2], 2, bias)
        assert (shares[0, ..., 4:] == 0).all()
        torch.testing.assert_close(shares.sum(-1), torch.ones(2, 2, 6))


def test_images_of_many_sizes_share_their_trials(monkeypatch):
    tried = []
    monkeypatch.setattr(attention, "_trial", lambda tokens, *_: tried.append(tokens) or True)
    for tokens in (5, 63, 64, 257, 511, 512, 1370, 5000):
        attention.written_out_pays(tokens, 6, 64)
    assert tried == [32, 32, 64, 256, 256, 512, 1024, 1024]
