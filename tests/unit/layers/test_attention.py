# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from opendino.errors import ModelError
from opendino.layers.attention import Attention


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


def test_bfloat16_on_a_cpu_is_as_near_to_float32_as_the_fused_kernel():
    """There the products are written out, for speed; forward and backward."""
    torch.manual_seed(0)
    attention = Attention(128, num_heads=2)
    x = torch.randn(4, 17, 128)

    def run(dtype, fused):
        exact = Attention(128, num_heads=2).to(dtype)
        exact.load_state_dict(attention.state_dict())
        inputs = x.clone().to(dtype).requires_grad_()
        if fused:
            q, k, v = exact.qkv(inputs).view(4, 17, 3, 2, 64).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            out = exact.proj(mixed.transpose(1, 2).reshape(4, 17, 128))
        else:
            out = exact(inputs)
        out.square().sum().backward()
        return out.detach().float(), inputs.grad.float()

    expected = run(torch.float32, fused=True)
    for ours, theirs, exact in zip(run(torch.bfloat16, False), run(torch.bfloat16, True), expected, strict=True):
        assert (ours - exact).norm() <= 1.2 * (theirs - exact).norm() + 1e-6
        assert (ours - exact).norm() <= 0.02 * exact.norm()
