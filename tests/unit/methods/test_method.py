# SPDX-License-Identifier: Apache-2.0
"""What every method shares, on two networks of one number."""

import pytest
import torch
from torch import nn

from opendino.methods.method import Method


class Pair(Method):
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.ModuleDict({"backbone": nn.Linear(1, 1), "dino_head": nn.Dropout()})
        self.teacher = nn.ModuleDict({"backbone": nn.Linear(1, 1), "dino_head": nn.Dropout()})


def test_the_teacher_stays_in_evaluation_mode():
    method = Pair().train()
    assert method.student.training
    assert not any(module.training for module in method.teacher.modules())


def test_the_teacher_moves_towards_the_student():
    method = Pair()
    with torch.no_grad():
        method.student["backbone"].weight.fill_(1.0)
        method.teacher["backbone"].weight.fill_(3.0)
    method.update_teacher(0.75)
    assert method.teacher["backbone"].weight.item() == pytest.approx(2.5)
    assert method.student["backbone"].weight.item() == 1.0


def test_each_of_the_students_networks_is_clipped_by_itself():
    assert list(Pair().subnetworks()) == ["backbone", "dino_head"]


def test_what_a_run_is_for_is_the_teachers_backbone():
    method = Pair()
    assert method.results() == {"": method.teacher["backbone"]}
