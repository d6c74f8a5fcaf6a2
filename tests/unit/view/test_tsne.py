# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.view._tsne import _gradient, affinities, tsne


def test_affinities_have_the_perplexity():
    x = torch.randn(60, 5, dtype=torch.float64)
    joint = affinities(torch.cdist(x, x).square(), 12.0)
    assert float(joint.sum()) == pytest.approx(1)
    torch.testing.assert_close(joint, joint.T)
    assert float(joint.diagonal().abs().max()) == 0
    # One point alone in the middle of a ring has equal neighbours.
    angles = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    ring = torch.stack([angles.cos(), angles.sin()], dim=1)
    alone = affinities(torch.cdist(ring, ring).square(), 6.99999)
    torch.testing.assert_close(alone, (1 - torch.eye(8, dtype=torch.float64)) / 56, atol=1e-3, rtol=0)


def test_the_gradient_is_that_of_the_divergence():
    x = torch.randn(7, 3, dtype=torch.float64)
    joint = affinities(torch.cdist(x, x).square(), 2.0)
    y = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    kernel = (1 / (1 + (y[:, None] - y[None]).square().sum(-1))) * (1 - torch.eye(7, dtype=torch.float64))
    q = kernel / kernel.sum()
    off = ~torch.eye(7, dtype=torch.bool)
    (joint[off] * (joint[off] / q[off]).log()).sum().backward()
    torch.testing.assert_close(_gradient(joint, y.detach()), y.grad)


def test_equal_features_do_no_harm():
    assert torch.isfinite(tsne(torch.ones(6, 4))).all()
