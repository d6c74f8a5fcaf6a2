# SPDX-License-Identifier: Apache-2.0
"""Layers with an operation of ours take their plain formula where others follow operations one by one."""

import pytest
import torch
from torch import nn

from opendino.layers.drop_path import residual_on_subset
from opendino.layers.fast_linear import use_fast_linears
from opendino.layers.followed import is_followed


@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")
def test_where_operations_are_followed():
    said = []

    def ask(x):
        said.append(is_followed())
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    ask(x).sum().backward()
    assert said == [False]
    torch.func.vmap(ask)(x)
    torch.func.grad(lambda x: ask(x).sum())(x)
    with torch.autograd.forward_ad.dual_level():
        ask(x)
    torch.jit.trace(ask, x, check_trace=False)
    assert all(said[1:]) and len(said) == 5
    assert not is_followed()
    assert torch.equal(torch.compile(lambda x: x + is_followed(), backend="eager", fullgraph=True)(x), x + 1)


def linear():
    layer = nn.Sequential(nn.Linear(6, 6))
    use_fast_linears(layer)
    return layer


def half_of_the_images():
    def dropped(x):
        torch.manual_seed(0)
        return residual_on_subset(x, ((2, 2), (3, 1)), 0.4, lambda kept, _: kept.sin())

    return dropped


@pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")  # of its forward mode
@pytest.mark.parametrize("make", [linear, half_of_the_images])
def test_layers_can_be_transformed(make):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(7, 6)
    _, vjp = torch.func.vjp(layer, x)
    leaf, along = x.clone().requires_grad_(), torch.randn(7, 6)
    (wanted,) = torch.autograd.grad(layer(leaf), leaf, along)
    torch.testing.assert_close(vjp(along)[0], wanted)
    moved = torch.func.jvp(layer, (x,), (along,))[1]
    torch.testing.assert_close((moved * along).sum(), (wanted * along).sum())  # along M along, either way round
