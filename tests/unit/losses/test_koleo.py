# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from opendino.losses.koleo import EPS, koleo_loss, nearest


def naive(cls):
    """The formula row by row in float64."""
    rows = [row / row.norm() for row in cls.double()]
    total = 0.0
    for i, row in enumerate(rows):
        total -= math.log(min((row - other).norm().item() for j, other in enumerate(rows) if j != i))
    return total / len(rows)


def test_hand_worked_triangle():
    # Unit vectors at 0, 60 and 180 degrees: nearest distances 1, 1 and sqrt(3). Lengths do not matter.
    angles = torch.tensor([0.0, math.pi / 3, math.pi])
    cls = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[3.0], [0.1], [1.0]])
    assert koleo_loss(cls).item() == pytest.approx(-math.log(math.sqrt(3)) / 3, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_naive_formula(seed):
    cls = torch.randn(10, 16, generator=torch.Generator().manual_seed(seed))
    assert koleo_loss(cls).item() == pytest.approx(naive(cls), abs=1e-5)


def test_nearest_is_never_oneself():
    unit = torch.nn.functional.normalize(torch.randn(20, 3), dim=-1)
    distances = torch.cdist(unit, unit) + torch.eye(20) * 9
    assert torch.equal(nearest(unit), distances.argmin(dim=1))


def test_gradient():
    cls = torch.randn(5, 3, dtype=torch.float32, requires_grad=True)
    gradient = torch.autograd.grad(koleo_loss(cls), cls)[0]
    step = 1e-5
    for i in range(5):
        for j in range(3):
            up, down = cls.detach().double(), cls.detach().double()
            up[i, j] += step
            down[i, j] -= step
            assert gradient[i, j].item() == pytest.approx((naive(up) - naive(down)) / (2 * step), abs=1e-3)


def test_descent_spreads_features():
    cls = (torch.randn(8, 4) * 0.1 + 1).requires_grad_()
    before = koleo_loss(cls)
    for _ in range(20):
        gradient = torch.autograd.grad(koleo_loss(cls), cls)[0]
        cls = (cls - 0.1 * gradient).detach().requires_grad_()
    assert koleo_loss(cls) < before - 0.5


def test_order_of_images_and_rotation_do_not_matter():
    cls = torch.randn(8, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    assert koleo_loss(cls[torch.randperm(8)]).item() == pytest.approx(koleo_loss(cls).item(), abs=1e-6)
    assert koleo_loss(cls @ rotation).item() == pytest.approx(koleo_loss(cls).item(), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_rows_are_finite_in_every_dtype(dtype):
    cls = torch.randn(8, 384)
    cls[1] = cls[0]
    cls = cls.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = koleo_loss(cls)
    apart = koleo_loss(cls[2:].detach()).item()
    at_guard = -math.log(EPS * math.sqrt(384) + EPS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((2 * at_guard + 6 * apart) / 8, abs=0.05)
    assert loss.item() == pytest.approx(3.62, abs=0.05)  # the published code's value for such a batch, in float32
    assert torch.autograd.grad(loss, cls)[0].isfinite().all()


def test_all_rows_equal_and_zero_rows_are_finite():
    for cls in (torch.ones(4, 3), torch.zeros(4, 3)):
        cls.requires_grad_()
        loss = koleo_loss(cls)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, cls)[0].isfinite().all()


@pytest.mark.parametrize("rows", [0, 1])
def test_without_a_neighbour_it_is_zero_and_so_is_the_gradient(rows):
    cls = torch.randn(rows, 4, requires_grad=True)
    loss = koleo_loss(cls)
    assert loss.item() == 0
    assert torch.equal(torch.autograd.grad(loss, cls)[0], torch.zeros(rows, 4))


def test_autocast_changes_nothing():
    cls = torch.randn(16, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = koleo_loss(cls)
    assert torch.equal(under, koleo_loss(cls))


def test_neighbours_are_found_in_full_float32(monkeypatch):
    """Where the caller lets products be rounded to TensorFloat-32, as a run in bfloat16 does."""
    before, seen = torch.get_float32_matmul_precision(), []
    product = torch.Tensor.__matmul__

    def spy(self, other):
        seen.append(torch.get_float32_matmul_precision())
        return product(self, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    torch.set_float32_matmul_precision("high")
    try:
        koleo_loss(torch.randn(4, 3))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"]
