# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.losses.gram import gram_loss


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_two_patches_by_hand():
    """At a right angle for the student, alike for the anchor: the one pair differs by 1, counted from both ends."""
    student = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    anchor = torch.tensor([[[1.0, 0.0], [5.0, 0.0]]])
    assert gram_loss(student, anchor).item() == pytest.approx(1.0)
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert gram_loss(opposite, anchor).item() == pytest.approx(4.0)


def test_features_may_turn_and_grow():
    student = tokens(2, 9, 6)
    turn = torch.linalg.qr(tokens(6, 6, seed=1)).Q
    assert gram_loss(3 * student @ turn, student).item() < 1e-10
    assert gram_loss(torch.cat([student, torch.zeros(2, 9, 4)], dim=-1), student).item() < 1e-10
    assert gram_loss(tokens(2, 9, 6, seed=2), student).item() > 0.05


def test_the_mean_over_pairs_written_out():
    student, anchor = tokens(3, 5, 4), tokens(3, 5, 7, seed=1)
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[0, 1] = hidden[1, 2] = hidden[1, 4] = True
    per_crop = []
    for b in range(3):
        seen = [i for i in range(5) if not hidden[b, i]]
        cosine = torch.nn.functional.cosine_similarity
        squares = [
            (cosine(student[b, i], student[b, j], dim=0) - cosine(anchor[b, i], anchor[b, j], dim=0)) ** 2
            for i in seen
            for j in seen
            if i != j
        ]
        per_crop.append(sum(squares) / len(squares))
    assert gram_loss(student, anchor, hidden).item() == pytest.approx(float(sum(per_crop) / 3), rel=1e-5)


def test_what_is_hidden_has_no_say_and_no_gradient():
    student, anchor = tokens(1, 4, 3).requires_grad_(), tokens(1, 4, 3, seed=1).requires_grad_()
    hidden = torch.tensor([[False, True, False, False]])
    gram_loss(student, anchor, hidden).backward()
    assert student.grad[0, 1].abs().max() == 0
    assert student.grad[0, 0].abs().max() > 0
    assert anchor.grad is None
    moved = student.detach().clone()
    moved[0, 1] += 5
    assert torch.equal(gram_loss(moved, anchor, hidden), gram_loss(student, anchor, hidden))


def test_crops_with_nothing_to_compare():
    student, anchor = tokens(2, 3, 4), tokens(2, 3, 4, seed=1)
    hidden = torch.tensor([[True, True, False], [True, True, True]])
    assert gram_loss(student, anchor, hidden).item() == 0


def test_half_precision_is_computed_in_float32():
    student, anchor = tokens(1, 16, 8), tokens(1, 16, 8, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = gram_loss(student, anchor)
    assert torch.equal(under, gram_loss(student, anchor))
