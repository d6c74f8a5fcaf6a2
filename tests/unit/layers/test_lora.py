# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from opendino.errors import ConfigError
from opendino.layers.lora import LoRALinear, add_lora, merge_lora, merged_parameters


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def test_it_begins_as_the_layer_and_ends_as_one():
    model, x = network(), torch.randn(3, 6)
    before, names = model(x), list(model.state_dict())
    assert add_lora(model, "2", rank=2, alpha=6.0) == ["2"]
    torch.testing.assert_close(model(x), before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["2.down", "2.up"]
    with torch.no_grad():
        model[2].up.normal_()
    weight = model[2].linear.weight + 3.0 * model[2].up @ model[2].down  # alpha / rank
    changed = model(x)
    merge_lora(model)
    assert isinstance(model[2], nn.Linear)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model[2].weight, weight)
    torch.testing.assert_close(model(x), changed)


def test_only_the_products_learn():
    layer = LoRALinear(nn.Linear(4, 3), 2, 2.0)
    layer(torch.randn(5, 4)).square().sum().backward()
    assert layer.linear.weight.grad is None
    assert layer.up.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match="no linear layer's name ends on"):
        add_lora(network(), "attn", 2, 2.0)


def test_merged_parameters_are_those_after_merging():
    model = network()
    add_lora(model, "0|2", rank=2, alpha=6.0)
    with torch.no_grad():
        model[0].up.normal_()
        model[2].up.normal_()
    before, told = {name: p.clone() for name, p in model.named_parameters()}, merged_parameters(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "the module stays as it is"
    merge_lora(model)
    assert list(told) == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(told[name], p) for name, p in model.named_parameters())
