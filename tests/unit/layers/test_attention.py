# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from opendino.errors import ModelError
from opendino.layers import attention as module
from opendino.layers.attention import Attention, Way, faster_way, use_attention


def by_hand(attention, x):
    """One image, one head, one query at a time, from the definition."""
    B, T, D = x.shape
    heads = attention.num_heads
    width = D // heads
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q, k, v = (x @ weight[i * D : (i + 1) * D].T + bias[i * D : (i + 1) * D] for i in range(3))
    out = torch.zeros_like(x)
    for b in range(B):
        for a in range(heads):
            columns = slice(a * width, (a + 1) * width)
            for t in range(T):
                scores = torch.stack([q[b, t, columns] @ k[b, s, columns] for s in range(T)]) / math.sqrt(width)
                weights = scores.exp() / scores.exp().sum()
                out[b, t, columns] = sum(weights[s] * v[b, s, columns] for s in range(T))
    return out @ attention.proj.weight.T + attention.proj.bias


def test_equals_the_definition():
    attention = Attention(12, num_heads=3)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(attention(x), by_hand(attention, x), atol=1e-6, rtol=1e-5)


def test_list_attends_within_each_image_only():
    attention = Attention(12, num_heads=3)
    xs = [torch.randn(2, 5, 12), torch.randn(3, 4, 12), torch.randn(1, 1, 12)]
    for x, out in zip(xs, attention.forward_list(xs), strict=True):
        alone = torch.cat([attention(row[None]) for row in x])
        torch.testing.assert_close(out, alone, atol=1e-6, rtol=1e-5)


def test_tokens_are_a_set():
    attention = Attention(8, num_heads=2)
    x = torch.randn(2, 6, 8)
    order = torch.randperm(6)
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])


def test_biases_can_be_left_out():
    assert set(Attention(8, 2, qkv_bias=False, proj_bias=False).state_dict()) == {"qkv.weight", "proj.weight"}


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ModelError, match="width 10 cannot be split into 3 heads"):
        Attention(10, 3)


@pytest.mark.parametrize("way", ["auto", "written"])
def test_bfloat16_written_out_is_as_near_to_float32_as_the_fused_kernel(way):
    """Forward and backward; "auto" is written out on a CPU."""
    torch.manual_seed(0)
    attention = Attention(128, num_heads=2)
    x = torch.randn(4, 17, 128)

    def run(dtype, way):
        exact = Attention(128, num_heads=2).to(dtype)
        exact.load_state_dict(attention.state_dict())
        exact.way = way
        inputs = x.clone().to(dtype).requires_grad_()
        out = exact(inputs)
        out.square().sum().backward()
        assert inputs.grad is not None
        return out.detach().float(), inputs.grad.float()

    expected, fused = run(torch.float32, "fused"), run(torch.bfloat16, "fused")
    assert not torch.equal(run(torch.bfloat16, way)[0], fused[0])  # two ways, not one twice
    for ours, theirs, exact in zip(run(torch.bfloat16, way), fused, expected, strict=True):
        assert (ours - exact).norm() <= 1.2 * (theirs - exact).norm() + 1e-6
        assert (ours - exact).norm() <= 0.02 * exact.norm()


@pytest.mark.parametrize(("images", "tokens", "heads"), [(1, 1, 1), (3, 7, 2), (2, 65, 3)])
def test_written_out_its_gradient_is_that_of_the_formula(images, tokens, heads):
    """In float64, where nothing is rounded; the gradient that comes in may be of any strides."""
    torch.manual_seed(0)
    qkv = torch.randn(images, tokens, 3 * 4 * heads, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module._written_out(x, heads), qkv)
    assert torch.autograd.gradgradcheck(lambda x: module._written_out(x, heads), qkv, fast_mode=True)
    written, fused = module._written_out(qkv, heads), module._attend(qkv, heads, "fused")
    torch.testing.assert_close(written, fused)
    weights = torch.randn(4 * heads, tokens, images, dtype=torch.float64).permute(2, 1, 0)
    found, wanted = (torch.autograd.grad((out * weights).sum(), qkv)[0] for out in (written, fused))
    torch.testing.assert_close(found, wanted)
    (whole,) = torch.autograd.grad(module._written_out(qkv, heads).sum(), qkv)  # one number for all, unfolded
    torch.testing.assert_close(whole, torch.autograd.grad(module._attend(qkv, heads, "fused").sum(), qkv)[0])


def test_a_graph_for_others_holds_the_formula():
    """What is traced in bfloat16 needs nothing of ours, and gives the same."""
    attention, x = Attention(32, 2).bfloat16().requires_grad_(False), torch.randn(2, 5, 32).bfloat16()
    program = torch.export.export(attention, (x,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "aten.softmax.int" in targets
    assert not targets & {"aten.bmm.default", "aten.bmm.out", "aten.softmax.int_out"}
    torch.testing.assert_close(program.module()(x), attention(x), atol=2e-2, rtol=2e-2)


def transformed(f, x):
    """Results of `torch.func`, and of the gradient of a gradient."""
    (first,) = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)
    with torch.autograd.forward_ad.dual_level():
        dual = f(torch.autograd.forward_ad.make_dual(x, x.sin()))
        moved = torch.autograd.forward_ad.unpack_dual(dual).tangent
    return {
        "grad": torch.func.grad(lambda y: f(y).square().sum())(x),
        "jvp": torch.func.jvp(f, (x,), (x.sin(),))[1],
        "vmap": torch.func.vmap(lambda y: f(y[None])[0])(x),
        "grad of each": torch.func.vmap(torch.func.grad(lambda y: f(y[None]).square().sum()))(x),
        "grad of grad": torch.autograd.grad(first.square().sum(), x)[0],
        "dual numbers": moved,
    }


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # of PyTorch's forward mode
def test_bfloat16_can_be_transformed_like_plain_operations():
    torch.manual_seed(0)
    exact, x = Attention(32, 2), torch.randn(3, 5, 32)
    half = Attention(32, 2).bfloat16()
    half.load_state_dict(exact.state_dict())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused kernel has no forward mode
        wanted = transformed(exact, x.clone().requires_grad_())
    for name, found in transformed(half, x.bfloat16().requires_grad_()).items():
        exactly = wanted[name]
        assert found is not None
        assert exactly is not None
        assert (found.float() - exactly).norm() <= 0.03 * exactly.norm(), name


def test_the_switch_turns_to_the_fused_kernel_and_back(monkeypatch):
    asked = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(module.F, "scaled_dot_product_attention", lambda *qkv: asked.append(1) or fused(*qkv))
    one, other = Attention(8, 2), Attention(8, 2)
    layers = torch.nn.Sequential(one, torch.nn.Sequential(other))
    x = torch.randn(2, 3, 8)
    expected: dict[Way, int] = {"auto": 0, "fused": 2, "written": 0}
    for way, calls in expected.items():
        assert use_attention(layers, way) == 2
        asked.clear()
        with torch.autocast("cpu", torch.bfloat16):
            whole = layers(x)
            assert len(asked) == calls, way
            asked.clear()
            first = other.first_tokens(one(x), 2)
        assert len(asked) == calls, way
        torch.testing.assert_close(first, whole[:, :2], rtol=2e-2, atol=2e-2)
    asked.clear()
    layers(x)
    assert len(asked) == 2  # float32 is the fused kernel's, whatever is said
    assert use_attention(torch.nn.Linear(2, 2), "fused") == 0


@pytest.mark.parametrize(
    ("fused", "written", "way"), [(1.0, 0.25, "written"), (1.0, 1.1, "written"), (1.0, 1.5, "fused")]
)
def test_a_trial_takes_the_faster_way_of_all_crops(monkeypatch, fused, written, way):
    """Times are counted for all images and heads, however few of them are tried."""
    monkeypatch.setattr(module, "seconds_of", lambda ways, rounds: [fused, written])
    assert faster_way([(2, 5), (3, 4)], 2, 4) == (way, pytest.approx(written / fused))
    tried = []
    monkeypatch.setattr(module, "seconds_of", lambda ways, rounds: tried.append(ways[0]()[0].shape) or [1.0, 2.0])
    faster_way([(100_000, 5), (3, 2000)], 4, 2)
    assert [shape[0] * shape[1] <= 2000 for shape in tried] == [True, True]
    assert tried[1][2] == 2  # one head of two channels


def test_a_trial_weighs_groups_by_their_size(monkeypatch):
    """Ten times as many small images, on which the written-out way loses."""
    taken = {257: [2.0, 1.0], 5: [1.0, 1.5]}
    monkeypatch.setattr(module, "seconds_of", lambda ways, rounds: taken[ways[0]()[0].shape[1]])
    assert faster_way([(1, 257), (1, 5)], 1, 4) == ("written", pytest.approx(2.5 / 3))
    assert faster_way([(1, 257), (1020, 5)], 1, 4) == ("fused", pytest.approx(16 / 12))  # 102 are tried


def test_a_way_that_is_wrong_is_not_taken(monkeypatch):
    monkeypatch.setattr(module, "_written_out", lambda qkv, heads: 1.1 * module._attend(qkv, heads, "fused"))
    monkeypatch.setattr(module, "seconds_of", lambda ways, rounds: [1.0, 0.1])
    assert faster_way([(2, 5)], 2, 4) == ("fused", float("inf"))


def test_a_trial_on_this_machine():
    way, ratio = faster_way([(4, 37), (2, 65)], 2, 64)
    assert way == ("written" if ratio < 1.2 else "fused")
    assert 0 < ratio < float("inf")
