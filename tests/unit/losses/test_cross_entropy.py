# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from opendino.losses._cross_entropy import cross_entropy


def test_hand_worked_rows():
    # At temperature 0.5 the rows are softmax(0, ln 2, ln 4) = 1/7, 2/7, 4/7 and softmax(0, 0, 0) = 1/3 each.
    logits = torch.tensor([[0.0, 0.5 * math.log(2), 0.5 * math.log(4)], [7.0, 7.0, 7.0]])
    targets = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.1, 0.0]])
    first = 0.5 * math.log(7) + 0.25 * math.log(7 / 2) + 0.25 * math.log(7 / 4)
    assert torch.allclose(cross_entropy(logits, targets, 0.5), torch.tensor([first, math.log(3)]))


def test_equals_the_library_on_class_indices():
    logits = torch.randn(5, 7)
    labels = torch.randint(0, 7, (5,))
    targets = torch.nn.functional.one_hot(labels, 7).float()
    wanted = torch.nn.functional.cross_entropy(logits / 0.1, labels, reduction="none")
    assert torch.allclose(cross_entropy(logits, targets, 0.1), wanted)


def test_gradient_is_softmax_minus_target_over_temp():
    logits = torch.randn(3, 4, requires_grad=True)
    targets = torch.softmax(torch.randn(3, 4), dim=-1).requires_grad_()
    cross_entropy(logits, targets, 0.2).sum().backward()
    wanted = (torch.softmax(logits.detach() / 0.2, dim=-1) - targets.detach()) / 0.2
    assert torch.allclose(logits.grad, wanted, atol=1e-5)
    assert targets.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_lost_at_the_door_only(dtype):
    logits = torch.randn(4, 1000).to(dtype)
    targets = torch.softmax(torch.randn(4, 1000) * 5, dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(logits, targets, 0.1)
    wanted = cross_entropy(logits.double().float(), targets, 0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wanted)
