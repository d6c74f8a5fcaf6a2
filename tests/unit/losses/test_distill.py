# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from opendino.losses.distill import COSINE_SHARE, cosine_distance, feature_loss, standard_distance

KINDS = ("cosine", "smooth_l1", "mixed")


def test_cosine_by_hand():
    student = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-5.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert cosine_distance(student, teacher).tolist() == pytest.approx([0, 1, 1 - math.sqrt(0.5), 2])


def test_smooth_l1_by_hand():
    # The target (4, 0) has mean 2 and deviation 2, so it is (1, -1); errors 0.5 and 3 cost 0.125 and 2.5.
    found = standard_distance(torch.tensor([[1.5, 2.0]]), torch.tensor([[4.0, 0.0]]))
    assert found.item() == pytest.approx((0.125 + 2.5) / 2, rel=1e-4)


def test_the_mixture_is_nine_parts_of_the_cosine():
    student, teacher = torch.randn(2, 5, 8)
    parts = (feature_loss(student, teacher, kind) for kind in ("cosine", "smooth_l1"))
    wanted = sum(share * part for share, part in zip((COSINE_SHARE, 1 - COSINE_SHARE), parts, strict=True))
    torch.testing.assert_close(feature_loss(student, teacher), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_no_scale_or_shift_of_the_teacher_matters_that_should_not(kind):
    student, teacher = torch.randn(2, 5, 8)
    torch.testing.assert_close(
        feature_loss(student, 100 * teacher, kind), feature_loss(student, teacher, kind), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_zero_at_the_standardised_target_and_least_there(kind):
    teacher = torch.nn.functional.layer_norm(torch.randn(4, 16), (16,))
    here = feature_loss(teacher, teacher, kind)
    assert here.abs().max() < 1e-4
    assert (feature_loss(teacher + 0.3 * torch.randn(4, 16), teacher, kind) > here).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_student_alone_and_half_precision_does_not_matter(kind):
    student, teacher = torch.randn(3, 4, 8, requires_grad=True), torch.randn(3, 4, 8, requires_grad=True)
    loss = feature_loss(student, teacher, kind)
    assert loss.shape == (3, 4)
    loss.sum().backward()
    assert student.grad is not None
    assert teacher.grad is None
    half = feature_loss(student.detach().half(), teacher.detach().half(), kind)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss.detach(), rtol=5e-3, atol=5e-3)
