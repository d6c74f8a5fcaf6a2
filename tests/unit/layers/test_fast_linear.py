# SPDX-License-Identifier: Apache-2.0
"""Fast linear layers learn as plain ones do."""

import copy

import pytest
import torch
from torch import nn

from opendino.layers import fast_linear
from opendino.layers.fast_linear import FastLinear, try_linears, use_fast_linears


@pytest.fixture(autouse=True)
def _it_pays(monkeypatch):
    monkeypatch.setattr(fast_linear.onednn, "available", lambda: True)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)], ids=["wider", "narrower"])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients(shape, bias):
    plain = nn.Linear(*shape, bias=bias)
    fast = copy.deepcopy(plain)
    assert use_fast_linears(fast) == 1
    assert type(fast) is FastLinear
    xs = [torch.randn(2, 3, shape[0], requires_grad=True) for _ in range(1)] * 2
    found, wanted = [], []
    for layer, into, x in zip((fast, plain), (found, wanted), xs, strict=True):
        x.grad = None
        out = layer(x)
        (out.sin() * torch.arange(out.numel()).view_as(out)).sum().backward()
        into += [out.detach(), x.grad, *[p.grad for p in layer.parameters()]]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


def test_a_gradient_is_differentiated_as_by_plain_layers():
    """As a gradient penalty does."""
    plain = nn.Linear(6, 10)
    fast = copy.deepcopy(plain)
    use_fast_linears(fast)
    x, found = torch.randn(4, 6), []
    for layer in (fast, plain):
        given = x.clone().requires_grad_()
        out = layer(given)
        (slope,) = torch.autograd.grad(out.square().sum(), given, create_graph=True)
        assert slope.requires_grad
        found.append(torch.autograd.grad(out.sum() + slope.square().sum(), [given, *layer.parameters()]))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-5)
    linear = fast(given)  # the gradient from above needs none itself
    (slope,) = torch.autograd.grad(linear.sum(), given, create_graph=True)
    torch.testing.assert_close(
        torch.autograd.grad(slope.square().sum(), fast.weight)[0], 8 * fast.weight.sum(dim=0).expand(10, 6)
    )


def test_gradients_by_differences():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))
    use_fast_linears(layer)
    x = torch.randn(7, 4)
    layer(x).square().sum().backward()
    weight, step = layer[0].weight, 1e-2
    with torch.no_grad():
        for i, j in ((0, 0), (3, 2)):
            values = []
            for sign in (1, -1):
                weight[i, j] += sign * step
                values.append(layer.double()(x.double()).square().sum())
                layer.float()
                weight = layer[0].weight
                weight[i, j] -= sign * step
            torch.testing.assert_close(
                (values[0] - values[1]).float() / (2 * step), layer[0].weight.grad[i, j].float(), atol=1e-2, rtol=1e-2
            )


def test_parameters_stay_and_other_layers_too():
    class Adapted(nn.Linear):
        """A layer with something on top."""

    module = nn.ModuleDict({"plain": nn.Linear(3, 2), "adapted": Adapted(3, 2), "norm": nn.LayerNorm(3)})
    parameters = dict(module.named_parameters())
    assert use_fast_linears(module) == 1
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())
    assert use_fast_linears(module) == 0


def test_autocast_and_other_types_take_the_plain_way():
    layer = nn.Linear(4, 3)
    use_fast_linears(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 4)).dtype == torch.bfloat16
    assert layer.double()(torch.randn(2, 4, dtype=torch.float64)).dtype == torch.float64
    assert layer(torch.randn(0, 4, dtype=torch.float64)).shape == (0, 3)


@pytest.mark.parametrize(("seconds", "wanted"), [([1.1, 1.0], True), ([1.3, 1.0], False), ([0.5, 1.0], True)])
def test_a_trial_takes_the_plain_way_only_where_it_is_clearly_faster(monkeypatch, seconds, wanted):
    asked = []
    monkeypatch.setattr(fast_linear.onednn, "seconds_of", lambda ways: asked.append([way() for way in ways]) or seconds)
    assert try_linears(6, 24) == (wanted, seconds[0])
    ((fast, plain),) = asked
    assert [tuple(one.shape) for one in fast] == [(512, 24), (512, 6), (24, 6), (24,)]
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


def test_a_trial_refuses_products_that_are_not_there_or_wrong(monkeypatch):
    monkeypatch.setattr(fast_linear.onednn, "seconds_of", lambda ways: pytest.fail("timed"))
    monkeypatch.setattr(fast_linear.onednn, "linear", lambda x, weight, bias: (x @ weight.t()) * torch.nan)
    assert try_linears(6, 24) == (False, float("inf"))
    monkeypatch.setattr(fast_linear.onednn, "available", lambda: False)
    assert try_linears(6, 24) == (False, float("inf"))
