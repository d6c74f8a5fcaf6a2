# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from opendino.optim.clipping import clip_gradients


@pytest.fixture
def networks():
    networks = {"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1), "idle": nn.Linear(1, 1)}
    networks["backbone"].weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    networks["backbone"].bias.grad = torch.tensor([12.0, 0.0])
    networks["head"].weight.grad = torch.tensor([[1.0, 2.0]])
    return networks


def test_each_network_is_clipped_by_its_own_norm(networks):
    norms = clip_gradients(networks, 3.0)
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(
        {"backbone": 13.0, "head": 5**0.5, "idle": 0.0}
    )
    assert torch.allclose(networks["backbone"].bias.grad, torch.tensor([12.0, 0.0]) * 3 / 13)
    assert torch.equal(networks["head"].weight.grad, torch.tensor([[1.0, 2.0]]))
    left = torch.cat([parameter.grad.flatten() for parameter in networks["backbone"].parameters()])
    assert left.norm().item() == pytest.approx(3.0, rel=1e-5)


def test_zero_leaves_gradients_and_still_measures(networks):
    norms = clip_gradients(networks, 0.0)
    assert norms["backbone"].item() == 13.0
    assert torch.equal(networks["backbone"].bias.grad, torch.tensor([12.0, 0.0]))


def test_a_gradient_that_is_not_a_number_shows_in_the_norm(networks):
    networks["head"].weight.grad[0, 0] = torch.nan
    norms = clip_gradients(networks, 3.0)
    assert norms["head"].isnan()
    assert norms["backbone"].item() == 13.0
