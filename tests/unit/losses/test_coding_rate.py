# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F

from opendino.losses.coding_rate import balance, coding_rate, cosine_loss, cosine_patch_loss


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def test_by_hand():
    # Two features at right angles in two dimensions: I + 2 / (2 * 0.5) I = 3 I, half its log-determinant is ln 3.
    assert coding_rate(torch.eye(2)).item() == pytest.approx(math.log(3))
    # The same feature twice: I + 2 e e', eigenvalues 1 + 2 * 2 and 1.
    assert coding_rate(torch.tensor([[1.0, 0.0], [1.0, 0.0]])).item() == pytest.approx(math.log(5) / 2)
    assert balance(64, 256) == 320 / (64 * 256)


@pytest.mark.parametrize(("rows", "width"), [(5, 12), (12, 5)])
def test_it_is_the_log_determinant_whichever_product_is_smaller(rows, width):
    z = unit(rows, width)
    whole = torch.eye(width, dtype=torch.float64) + width / (rows * 0.3) * (z.T @ z).double()
    assert coding_rate(z, 0.3).item() == pytest.approx(whole.logdet().item() / 2, rel=1e-5)


def test_all_directions_alike_are_the_most_and_equal_features_the_least():
    spread, equal = torch.eye(8).repeat(4, 1), unit(1, 8).expand(32, -1)
    rates = [coding_rate(z).item() for z in (equal, unit(32, 8), spread)]
    assert rates == sorted(rates)
    assert rates[2] == pytest.approx(4 * math.log(3))


def test_rotation_and_order_do_not_matter_and_descent_spreads():
    z, turn = unit(10, 6), torch.linalg.qr(torch.randn(6, 6)).Q
    assert coding_rate(z @ turn).item() == pytest.approx(coding_rate(z[torch.randperm(10)]).item(), rel=1e-5)
    z = F.normalize(torch.randn(16, 6) * 0.05 + 1, dim=-1).requires_grad_()
    before = coding_rate(z)
    for _ in range(100):
        (slope,) = torch.autograd.grad(coding_rate(z), z)
        z = F.normalize(z + 0.3 * slope, dim=-1).detach().requires_grad_()
    assert coding_rate(z) > before + 1


def test_pairs_equal_the_naive_sum_of_half_squared_distances():
    student, local, teacher = unit(2, 3, 5), unit(4, 3, 5), unit(2, 3, 5)
    terms = cosine_loss(student, local, teacher)
    half = lambda a, b: ((a - b).square().sum(-1) / 2).mean()  # noqa: E731
    near = sum(half(local[i], teacher[j]) for i in range(4) for j in range(2))
    far = half(student[0], teacher[1]) + half(student[1], teacher[0])
    assert terms.local.item() == pytest.approx(near.item() / 10, rel=1e-5)
    assert terms.global_.item() == pytest.approx(far.item() / 10, rel=1e-5)
    assert cosine_loss(teacher.flip(0), local[:0], teacher) == (0, pytest.approx(0, abs=1e-6))


def test_patches_weigh_by_crop():
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    # Crop one: two patches, 0 and 1 apart; crop two: one patch, 2 apart; of four crops.
    assert cosine_patch_loss(student, teacher, torch.tensor([0.5, 0.5, 1.0]), 4).item() == pytest.approx(2.5 / 4)
