# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from torch import nn

from opendino.errors import ModelError
from opendino.optim import ema
from opendino.optim.ema import update_ema


@pytest.fixture
def pair():
    student = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    teacher = copy.deepcopy(student).requires_grad_(False)
    for parameter in student.parameters():
        parameter.data.normal_()
    student[1].running_mean.fill_(7.0)
    return teacher, student


def test_hand_worked():
    teacher, student = nn.Linear(1, 1), nn.Linear(1, 1)
    teacher.weight.data.fill_(1.0)
    student.weight.data.fill_(3.0)
    update_ema(teacher, student, 0.75)
    assert teacher.weight.item() == 1.5
    update_ema(teacher, student, 0.75)
    assert teacher.weight.item() == 1.875
    assert student.weight.item() == 3.0


def test_every_parameter_moves_and_no_buffer(pair):
    teacher, student = pair
    wanted = {
        name: 0.9 * p + 0.1 * q for (name, p), q in zip(teacher.named_parameters(), student.parameters(), strict=True)
    }
    update_ema(teacher, student, 0.9)
    for name, parameter in teacher.named_parameters():
        assert torch.allclose(parameter, wanted[name])
    assert torch.equal(teacher[1].running_mean, torch.zeros(3))


def test_ends(pair):
    teacher, student = pair
    before = copy.deepcopy(teacher.state_dict())
    update_ema(teacher, student, 1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    update_ema(teacher, student, 0.0)
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), student.parameters(), strict=True))


def test_modules_that_differ_are_refused():
    with pytest.raises(ModelError, match="differ in structure"):
        update_ema(nn.Linear(2, 3), nn.Linear(2, 4), 0.9)


def test_nothing_to_average_is_fine():
    update_ema(nn.Identity(), nn.Identity(), 0.9)


@pytest.mark.parametrize("at_once", [1, 7, 2**26])
def test_the_device_may_decide_whether_a_step_counts(at_once, monkeypatch):
    monkeypatch.setattr(ema, "AT_ONCE", at_once)
    student, plain = nn.Linear(2, 3), nn.Linear(2, 3)
    teacher = copy.deepcopy(plain)
    update_ema(teacher, student, 0.75, torch.zeros(()))
    assert all(torch.equal(one, other) for one, other in zip(teacher.parameters(), plain.parameters(), strict=True))
    update_ema(teacher, student, 0.75, torch.ones(()))
    update_ema(plain, student, 0.75)
    torch.testing.assert_close(list(teacher.parameters()), list(plain.parameters()))
