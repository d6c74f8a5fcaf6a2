# SPDX-License-Identifier: Apache-2.0
"""The loss in blocks is the loss of the whole matrix, with the same gradients, in less memory."""

import pytest
import torch

from opendino.losses import _chunked
from opendino.losses._chunked import LastLayer, Unprojected, Wanted, chunked_cross_entropy
from opendino.losses._cross_entropy import cross_entropy
from opendino.losses.dino import dino_loss
from opendino.losses.ibot import ibot_loss


def plain(x, last, targets, which, temp):
    weight = last.v * (last.g / last.v.norm(dim=1, keepdim=True))
    logits = torch.nn.functional.linear(x, weight)
    return cross_entropy(logits, targets if which is None else targets[which], temp)


def rows_and_gradients(way, x, last, *others):
    x, *last = (one.clone().requires_grad_() for one in (x, *last))
    rows = way(x, LastLayer(*last), *others)
    (rows * torch.linspace(0.5, 2, len(rows))).sum().backward()
    return rows.detach(), x.grad, *(one.grad for one in last)


def chunked(x, last, targets, which, temp):
    return chunked_cross_entropy(x, last, [Wanted(targets, which)], temp)


def given(rows, d, K):
    x = torch.nn.functional.normalize(torch.randn(rows, d), dim=1)
    return x, LastLayer(torch.randn(K, d), torch.rand(K, 1) + 0.5)


@pytest.mark.parametrize("order", [None, "repeated"])
@pytest.mark.parametrize("block", [256, 700, 10**6])
def test_values_and_gradients(block, order, monkeypatch):
    monkeypatch.setitem(_chunked.LOGITS_AT_ONCE, "cpu", 9 * block)
    K, which = 1000, None if order is None else torch.tensor([0, 1, 2, 0, 1, 2, 2, 2, 1])
    x, last = given(9, 16, K)
    targets = torch.softmax(torch.randn(9 if which is None else 3, K) * 3, dim=1) * 1.7  # need not sum to one
    found = rows_and_gradients(chunked, x, last, targets, which, 0.1)
    wanted = rows_and_gradients(plain, x, last, targets, which, 0.1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_gradient_is_differentiated_as_that_of_the_whole_matrix(monkeypatch):
    """As a gradient penalty does; a loss that is summed gives no gradient from above that would need one."""
    monkeypatch.setitem(_chunked.LOGITS_AT_ONCE, "cpu", 4 * 256)
    x, last = given(4, 16, 1000)
    targets, found = torch.softmax(torch.randn(4, 1000), dim=1), []
    for way in (chunked, plain):
        leaves = [one.clone().requires_grad_() for one in (x, *last)]
        loss = way(leaves[0], LastLayer(*leaves[1:]), targets, None, 0.1).sum()
        (slope,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
        found.append(torch.autograd.grad(loss + slope.square().sum(), leaves))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-4)


def test_targets_of_several_terms(monkeypatch):
    """As if their rows stood in one matrix."""
    monkeypatch.setitem(_chunked.LOGITS_AT_ONCE, "cpu", 10 * 256)
    x, last = given(10, 16, 1000)
    few, own = (torch.softmax(torch.randn(rows, 1000), dim=1) for rows in (2, 3))
    wanted = [Wanted(few, torch.tensor([1, 0, 1, 1, 0])), Wanted(own), Wanted(few[:0]), Wanted(few)]
    found = rows_and_gradients(lambda x, last: chunked_cross_entropy(x, last, wanted, 0.1), x, last)
    which = torch.tensor([1, 0, 1, 1, 0, 2, 3, 4, 0, 1])
    torch.testing.assert_close(
        found, rows_and_gradients(plain, x, last, torch.cat([few, own]), which, 0.1), atol=1e-5, rtol=1e-5
    )


def test_a_block_is_of_few_logits_and_of_few_weights(monkeypatch):
    """Few rows do not make it large: 64 channels of 640 prototypes at once, however few logits these are."""
    monkeypatch.setitem(_chunked.WEIGHTS_AT_ONCE, "cpu", 640 * 64)
    v = torch.zeros(1500, 64)
    blocks = _chunked._blocks(torch.zeros(2, 64), v)
    assert blocks == [slice(0, 640), slice(640, 1280), slice(1280, 1500)]
    monkeypatch.setitem(_chunked.LOGITS_AT_ONCE, "cpu", 300 * 100)
    assert _chunked._blocks(torch.zeros(100, 64), v)[:2] == [slice(0, 300), slice(300, 600)]


def test_by_hand():
    # logits 0 and ln 3 at temperature 1: probabilities 1/4 and 3/4, cross-entropy against the second ln 4/3
    x, last = torch.ones(1, 1), LastLayer(torch.tensor([[2.0], [5.0]]), torch.tensor([[0.0], [3.0]]))
    last.g[1] = last.g[1].log()
    rows, of_x, of_v, of_g = rows_and_gradients(chunked, x, last, torch.tensor([[0.0, 1.0]]), None, 1.0)
    torch.testing.assert_close(rows, torch.tensor([4 / 3]).log())
    torch.testing.assert_close(of_g, torch.tensor([[0.25], [-0.25]]) * 0.5)
    torch.testing.assert_close(of_v, torch.zeros(2, 1))  # the length of a direction says nothing
    torch.testing.assert_close(of_x, torch.tensor([[-0.25]]) * torch.tensor(3.0).log() * 0.5)


def test_large_logits_and_no_rows():
    x, last = torch.full((2, 1), 1e4), LastLayer(torch.tensor([[1.0], [-1.0], [0.5]]), torch.ones(3, 1))
    last.g[2] = 0.5
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = rows_and_gradients(chunked, x, last, targets, None, 0.1)
    assert all(torch.isfinite(one).all() for one in found)
    torch.testing.assert_close(found[0], torch.tensor([0.0, 2e5]))
    rows, of_x, of_v, of_g = rows_and_gradients(chunked, x[:0], last, targets[:0], None, 0.1)
    assert rows.shape == (0,)
    assert of_x.shape == (0, 1)
    assert not of_v.any()
    assert not of_g.any()


def test_autocast_is_as_close_as_the_plain_way():
    x, last = given(20, 32, 600)
    targets = torch.softmax(torch.randn(20, 600), dim=1)
    exact = rows_and_gradients(plain, x, last, targets, None, 0.1)
    off = []
    for way in (chunked, plain):
        with torch.autocast("cpu", torch.bfloat16):
            found = rows_and_gradients(way, x, last, targets, None, 0.1)
        assert {one.dtype for one in found} == {torch.float32}
        off.append([float((one - two).abs().max() / two.abs().max()) for one, two in zip(found, exact, strict=True)])
    assert all(one < 1.5 * two + 1e-4 for one, two in zip(*off, strict=True)), off


@pytest.mark.parametrize("locals_", [0, 3])
def test_the_terms_take_logits_that_are_not_there_yet(locals_):
    K, B, M = 50, 4, 7
    rows, last = given((2 + locals_) * B + M, 8, K)
    teacher = torch.softmax(torch.randn(2, B, K) * 2, dim=-1)
    of_patches, weights = torch.softmax(torch.randn(M, K), dim=-1), torch.rand(M)

    def loss(x, last, *, there):
        logits = torch.nn.functional.linear(x, last.v * (last.g / last.v.norm(dim=1, keepdim=True)))
        said = logits if there else Unprojected(x, last)
        assert said.shape == logits.shape
        crops, patches = said.split([(2 + locals_) * B, M])
        crops = crops.unflatten(0, (-1, B))
        terms = dino_loss(crops[locals_:], crops[:locals_], teacher)
        return torch.stack([*terms, ibot_loss(patches, of_patches, weights, 2 * B)])

    found, wanted = (
        rows_and_gradients(lambda x, last, t=there: loss(x, last, there=t), rows, last) for there in (False, True)
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
