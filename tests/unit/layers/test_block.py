# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.errors import ModelError
from opendino.layers.block import Block


def randomise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def branch_attention(block, x):
    return block.ls1.gamma * block.attn(torch.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias, 1e-6))


def branch_ffn(block, x):
    return block.ls2.gamma * block.mlp(torch.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, 1e-6))


@pytest.mark.parametrize("ffn", ["mlp", "swiglu", "swiglufused"])
def test_equals_the_formula(ffn):
    block = randomise(Block(8, 2, init_values=1.0, ffn_layer=ffn))
    x = torch.randn(2, 5, 8)
    middle = x + branch_attention(block, x)
    torch.testing.assert_close(block(x), middle + branch_ffn(block, middle))


def test_identity_feed_forward_and_no_layer_scale():
    block = randomise(Block(8, 2, init_values=None, ffn_layer="identity"))
    assert not [key for key in block.state_dict() if "mlp" in key or "ls" in key]
    x = torch.randn(2, 5, 8)
    middle = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.norm2(middle))


def test_list_equals_separate_passes_with_gradients():
    block = randomise(Block(8, 2, init_values=1.0))
    xs = [torch.randn(2, 5, 8), torch.randn(3, 4, 8)]
    packed = block.forward_list(xs)
    torch.autograd.backward([y.square().sum() for y in packed])
    gradients = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    separate = [block(x) for x in xs]
    torch.autograd.backward([y.square().sum() for y in separate])
    torch.testing.assert_close(packed, separate)
    torch.testing.assert_close(gradients, [p.grad for p in block.parameters()], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("listed", [True, False])
def test_stochastic_depth_draws_each_branch_and_group_by_itself(listed):
    """Every image comes out as one of four: without, with one, with the other, with both scaled residuals."""
    block = randomise(Block(8, 2, init_values=1.0, drop_path=0.5)).train()
    xs = [torch.randn(8, 3, 8), torch.randn(6, 2, 8)] if listed else [torch.randn(8, 3, 8)]
    kinds = []
    for _ in range(4):
        outs = block.forward_list(xs) if listed else [block(xs[0])]
        for x, out in zip(xs, outs, strict=True):
            attended = x + 2 * branch_attention(block, x)
            candidates = [x, attended, x + 2 * branch_ffn(block, x), attended + 2 * branch_ffn(block, attended)]
            kind = torch.stack([(out - c).abs().amax(dim=(1, 2)) for c in candidates]).min(dim=0)
            assert kind.values.max() < 1e-5
            rows = len(x)
            assert sum(int(k in (1, 3)) for k in kind.indices) == rows // 2
            assert sum(int(k in (2, 3)) for k in kind.indices) == rows // 2
            kinds.append(kind.indices)
    assert {int(k) for kind in kinds for k in kind} == {0, 1, 2, 3}


def test_stochastic_depth_is_off_in_evaluation():
    block = randomise(Block(8, 2, drop_path=0.5)).eval()
    plain = Block(8, 2)
    plain.load_state_dict(block.state_dict())
    x = torch.randn(4, 3, 8)
    torch.testing.assert_close(block(x), plain(x))


def test_stochastic_depth_keeps_its_dtype_under_autocast():
    block = Block(8, 2, drop_path=0.5).train()
    with torch.autocast("cpu", torch.bfloat16):
        assert block(torch.randn(4, 3, 8)).dtype == torch.float32


def test_unknown_feed_forward_is_refused():
    with pytest.raises(ModelError, match="ffn_layer='relu' is not known; choose one of mlp, swiglu"):
        Block(8, 2, ffn_layer="relu")


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_drop_rates_are_refused(rate):
    with pytest.raises(ModelError, match="is not a share of the images"):
        Block(8, 2, drop_path=rate)


@pytest.mark.parametrize("ffn", ["mlp", "swiglu", "identity"])
@pytest.mark.parametrize(("drop_path", "training"), [(0.0, True), (0.4, True), (0.9, True), (0.4, False)])
def test_some_tokens_are_those_of_the_whole_block(ffn, drop_path, training):
    """Values, gradients and what is drawn; also of images whose residuals stochastic depth leaves out."""
    block = randomise(Block(8, 2, init_values=1.0, drop_path=drop_path, ffn_layer=ffn)).double().train(training)
    groups = ((5, 6), (7, 3))
    wanted = [torch.tensor([0, 6, 12, 18, 24, 3, 7, 8, 29]), torch.arange(0, 21, 3)]
    where = torch.cat([wanted[0], 30 + wanted[1]])
    x, found = torch.randn(51, 8, dtype=torch.float64), []
    for asked in (None, wanted):
        torch.manual_seed(0)
        block.zero_grad()
        tokens = x.clone().requires_grad_()
        out = block(tokens, groups, asked)
        out = out if asked else out[where]
        (out**2).sum().backward()
        gradients = [p.grad for p in block.parameters()]
        found.append([out.detach(), tokens.grad, *[g.clone() for g in gradients if g is not None], torch.rand(1)])
    assert len(found[0][0]) == 16
    torch.testing.assert_close(*found)


def test_other_tokens_are_neither_projected_nor_fed_forward():
    block = Block(8, 2, init_values=1.0)
    seen = {}
    for name in ("attn.qkv", "attn.proj", "mlp.fc1"):
        block.get_submodule(name).register_forward_hook(
            lambda _, given, __, name=name: seen.update({name: len(given[0])})
        )
    block(torch.randn(20, 8), ((4, 5),), [torch.tensor([0, 5, 10])])
    assert seen == {"attn.qkv": 20, "attn.proj": 3, "mlp.fc1": 3}


def test_tokens_are_wanted_of_a_batch_as_of_packed_ones():
    block, x = randomise(Block(8, 2, init_values=1.0)), torch.randn(4, 5, 8)
    torch.testing.assert_close(block(x, None, [torch.tensor([0, 7, 19])]), block(x).flatten(0, 1)[[0, 7, 19]])
