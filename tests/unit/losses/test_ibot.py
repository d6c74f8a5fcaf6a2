# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch

from opendino.data.masking import MaskConfig, batch_masks
from opendino.losses.dino import STUDENT_TEMP
from opendino.losses.ibot import ibot_loss


def test_hand_worked_two_crops():
    # Crop 1 has one masked patch, crop 2 two, crops 3 and 4 none. The student is flat: each patch costs ln 3,
    # save the last, where softmax at temperature 0.1 gives 1/4, 1/4, 1/2 and the teacher says the third.
    student = torch.zeros(3, 3)
    student[2, 2] = 0.1 * math.log(2)
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.0, 0.0, 1.0]])
    weights = torch.tensor([1.0, 0.5, 0.5])
    wanted = (math.log(3) + (math.log(3) + math.log(2)) / 2) / 4
    assert ibot_loss(student, teacher, weights, 4).item() == pytest.approx(wanted)


def test_equals_a_loop_over_crops_and_patches():
    masks, indices, weights, _ = batch_masks(6, (4, 5), MaskConfig(), np.random.default_rng(0))
    student, teacher = torch.randn(6 * 20, 7), torch.softmax(torch.randn(6 * 20, 7) * 4, dim=-1)
    wanted = 0.0
    for crop in range(6):
        masked = [patch for patch in range(20) if masks[crop, patch]]
        for patch in masked:
            exponentials = (student[crop * 20 + patch].double() / STUDENT_TEMP).exp()
            log_probs = (exponentials / exponentials.sum()).log()
            wanted -= (teacher[crop * 20 + patch] * log_probs).sum().item() / len(masked) / 6
    loss = ibot_loss(student[indices], teacher[indices], weights, 6)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_half_masked_starts_at_half_the_entropy_of_a_flat_student():
    masks = batch_masks(16, (8, 8), MaskConfig(), np.random.default_rng(0))
    n_masked = len(masks.indices)
    teacher = torch.softmax(torch.randn(n_masked, 100), dim=-1)
    loss = ibot_loss(torch.zeros(n_masked, 100), teacher, masks.weights, 16)
    assert loss.item() == pytest.approx(0.5 * math.log(100), rel=1e-5)


def test_order_of_patches_does_not_matter():
    student, teacher, weights = torch.randn(9, 4), torch.softmax(torch.randn(9, 4), dim=-1), torch.rand(9)
    order = torch.randperm(9)
    assert torch.allclose(
        ibot_loss(student, teacher, weights, 4), ibot_loss(student[order], teacher[order], weights[order], 4)
    )


def test_without_masks_the_loss_and_its_gradient_are_zero():
    student = torch.randn(0, 4, requires_grad=True)
    loss = ibot_loss(student, torch.zeros(0, 4), torch.zeros(0), 4)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, student)[0].shape == (0, 4)
