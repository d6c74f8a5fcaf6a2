# SPDX-License-Identifier: Apache-2.0
"""Losses, figures and crops of `_depth.py`; the twin of `depth.py` is `test_depth.py`."""

import math

import pytest
import torch

from opendino.eval import _depth


def test_scale_invariant_loss_worked_by_hand():
    target = torch.tensor([1.0, 1.0, 4.0, 0.0])
    counted = _depth.valid(target, 0.001, 10.0)
    assert counted.tolist() == [True, True, True, False]
    predicted = torch.tensor([math.e, 1.0, 4.0 / math.e, 7.0])
    # g = 1, 0, -1 (but for the guard of 0.001): variance 1, mean 0.
    assert float(_depth.sig_loss(predicted, target, counted)) == pytest.approx(1.0, abs=2e-3)
    # A common factor costs only 0.15 of its squared logarithm.
    twice = _depth.sig_loss(2 * target, target, counted)
    assert float(twice) == pytest.approx(math.sqrt(0.15) * math.log(2), rel=2e-3)
    assert float(_depth.sig_loss(predicted, target, counted, warm=True)) == pytest.approx(0, abs=1e-3)


def test_the_ends_of_the_range_are_learned_but_not_measured():
    """The official evaluation takes what lies strictly between both ends, its losses all that is positive up to one."""
    target = torch.tensor([0.0, 0.001, 0.002, 5.0, 9.999, 10.0, 10.001, math.nan])
    assert _depth.valid(target, 0.001, 10.0).tolist() == [False, False, True, True, True, False, False, False]
    assert _depth.learned(target, 10.0).tolist() == [False, True, True, True, True, True, False, False]


def test_loss_of_slopes_sees_slopes_along_rows_and_columns_only():
    rows = torch.linspace(1, 2, 16).exp()
    target = torch.ones(2, 16, 16)
    counted = torch.ones_like(target, dtype=torch.bool)
    for axis in (0, 1):
        predicted = (rows[:, None] if axis == 0 else rows[None]).expand(2, 16, 16)
        # |g(i+2) - g(i)| = 2 s / 15 on 14 of 16 lines; at step s on 16 / s - 2 lines of 16 / s.
        wanted = sum(2 * s / 15 * (16 / s - 2) / (16 / s) for s in (1, 2, 4))
        assert float(_depth.gradient_loss(predicted, target, counted)) == pytest.approx(wanted, rel=1e-3)
    # Neither a factor of the whole image nor the other image of the batch matters.
    scaled = target * torch.tensor([2.0, 5.0])[:, None, None]
    assert float(_depth.gradient_loss(scaled, target, counted)) == pytest.approx(0, abs=1e-5)


def test_what_is_not_measured_has_no_gradient():
    target = torch.rand(1, 12, 12) + 1
    target[0, 4:7] = 0
    counted = _depth.valid(target, 0.001, 10.0)
    predicted = (torch.rand(1, 12, 12) + 1).requires_grad_()
    (_depth.sig_loss(predicted, target, counted) + _depth.gradient_loss(predicted, target, counted)).backward()
    assert bool(torch.isfinite(predicted.grad).all())
    assert float(predicted.grad[0, 4:7].abs().sum()) == 0
    assert float(predicted.grad[counted].abs().min()) > 0


def test_figures_worked_by_hand():
    found = _depth.errors(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 4.0]))
    assert found["rmse"] == pytest.approx(math.sqrt(1 / 2))
    assert found["abs_rel"] == pytest.approx(0.5)
    assert found["sq_rel"] == pytest.approx(0.5)
    assert found["log10"] == pytest.approx(math.log10(2) / 2)
    assert found["rmse_log"] == pytest.approx(math.log(2) / math.sqrt(2))
    assert found["silog"] == pytest.approx(100 * math.log(2) / 2)
    assert (found["d1"], found["d2"], found["d3"]) == (50, 50, 50)  # 2 > 1.25 ** 3
    assert _depth.errors(torch.tensor([1.5]), torch.tensor([1.0]))["d2"] == 100


def test_published_crops():
    eigen = _depth.eval_crop("eigen", 480, 640)
    rows, columns = eigen.any(1).nonzero().flatten(), eigen.any(0).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])) == (45, 470, 41, 600)
    garg = _depth.eval_crop("garg", 375, 1242)
    rows, columns = garg.any(1).nonzero().flatten(), garg.any(0).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])) == (153, 370, 44, 1196)
    assert bool(_depth.eval_crop("none", 5, 7).all())
    assert not bool(_depth.valid(torch.tensor([math.inf, math.nan, 0, 81.0]), 0.001, 80.0).any())
