# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from opendino.losses.dino import STUDENT_TEMP, dino_loss


def made(n_globals=2, n_locals=8, images=3, prototypes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.softmax(torch.randn(n_globals, images, prototypes, generator=generator) * 3, dim=-1)
    student_globals = torch.randn(n_globals, images, prototypes, generator=generator) * 0.2
    student_locals = torch.randn(n_locals, images, prototypes, generator=generator) * 0.2
    return student_globals, student_locals, teacher


def pairs_one_by_one(student_globals, student_locals, teacher):
    """Every (student crop, other-view teacher) pair in float64, as a list of (is local, cross-entropy)."""
    pairs = []
    for of_teacher, probs in enumerate(teacher.double()):
        for of_student, logits in enumerate([*student_globals.double(), *student_locals.double()]):
            if of_teacher == of_student:
                continue
            exponentials = (logits / STUDENT_TEMP).exp()
            log_probs = (exponentials / exponentials.sum(dim=-1, keepdim=True)).log()
            pairs.append((of_student >= len(teacher), -(probs * log_probs).sum(dim=-1).mean().item()))
    return pairs


def test_eighteen_pairs_weigh_the_same():
    crops = made()
    pairs = pairs_one_by_one(*crops)
    assert len(pairs) == 18
    terms = dino_loss(*crops)
    assert terms.local.item() == pytest.approx(sum(loss for local, loss in pairs if local) / 18, rel=1e-5)
    assert terms.global_.item() == pytest.approx(sum(loss for local, loss in pairs if not local) / 18, rel=1e-5)


@pytest.mark.parametrize(("n_globals", "n_locals"), [(2, 0), (2, 1), (3, 2), (1, 4)])
def test_any_number_of_crops_gives_the_mean_over_pairs(n_globals, n_locals):
    crops = made(n_globals, n_locals)
    pairs = [loss for _, loss in pairs_one_by_one(*crops)]
    assert sum(dino_loss(*crops)).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)


def test_hand_worked_two_views_three_prototypes():
    # One image; softmax at temperature 0.1 gives crop 1: 1/4, 1/4, 1/2; crop 2: thirds; local crop: 1/6, 1/3, 1/2.
    def logits(*odds):
        return torch.tensor([[[0.1 * math.log(odd) for odd in odds]]])

    student_globals = torch.cat([logits(1, 1, 2), logits(1, 1, 1)])
    teacher = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 0.5, 0.5]]])
    terms = dino_loss(student_globals, logits(1, 2, 3), teacher)
    # Pairs: crop 1 with teacher 2, crop 2 with teacher 1, the local crop with both; 4 in all.
    crop_1, crop_2 = 0.5 * math.log(4) + 0.5 * math.log(2), math.log(3)
    local = math.log(6) + 0.5 * math.log(3) + 0.5 * math.log(2)
    assert terms.global_.item() == pytest.approx((crop_1 + crop_2) / 4)
    assert terms.local.item() == pytest.approx(local / 4)


def test_a_crop_is_not_compared_with_its_own_view():
    student_globals, student_locals, teacher = made(n_locals=0)
    changed = teacher.clone()
    changed[0] = torch.softmax(torch.randn_like(changed[0]), dim=-1)
    student_globals.requires_grad_()

    def gradient(targets):
        return torch.autograd.grad(sum(dino_loss(student_globals, student_locals, targets)), student_globals)[0]

    before, after = gradient(teacher), gradient(changed)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_order_of_images_and_of_local_crops_does_not_matter():
    student_globals, student_locals, teacher = made()
    images, crops = torch.randperm(3), torch.randperm(8)
    permuted = dino_loss(student_globals[:, images], student_locals[crops][:, images], teacher[:, images])
    assert torch.allclose(torch.stack(permuted), torch.stack(dino_loss(student_globals, student_locals, teacher)))


def test_gradient_in_float64_steps():
    student_globals, student_locals, teacher = made(images=1, prototypes=4, n_locals=1)
    student_globals.requires_grad_()
    loss = sum(dino_loss(student_globals, student_locals, teacher))
    gradient = torch.autograd.grad(loss, student_globals)[0]
    softmax = torch.softmax(student_globals.detach() / STUDENT_TEMP, dim=-1)
    assert torch.allclose(gradient, (softmax - teacher.flip(0)) / STUDENT_TEMP / 4, atol=1e-5)


def test_confident_and_right_costs_nothing():
    teacher = torch.eye(3)[None].expand(2, 3, 3)
    assert sum(dino_loss(teacher * 10.0, teacher.repeat(4, 1, 1) * 10.0, teacher)).item() < 1e-6


def test_small_probabilities_survive_beside_large_ones():
    # Each teacher row keeps 1e-9 on prototype 1; taking "all minus own" in float32 would lose it.
    teacher = torch.tensor([[[1 - 1e-9, 1e-9]], [[1 - 1e-9, 1e-9]]])
    logits = torch.tensor([[[1e3, -1e7]], [[1e3, -1e7]]])
    terms = dino_loss(logits, logits[:0], teacher)
    assert terms.global_.item() == pytest.approx(1e-9 * (1e7 + 1e3) / STUDENT_TEMP, rel=1e-4)
