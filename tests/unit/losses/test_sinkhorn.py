# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import numpy as np
import pytest
import torch

from opendino.losses import sinkhorn
from opendino.losses.sinkhorn import sinkhorn_knopp


def naive(logits, temp, iterations=3):
    """The published steps one by one, on the whole matrix in float64."""
    q = np.exp(logits.double().numpy() / temp).T
    prototypes, rows = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True)
        q /= prototypes
        q /= q.sum(axis=0, keepdims=True)
        q /= rows
    return torch.from_numpy((q * rows).T.copy()).float()


def made(rows=12, prototypes=6, seed=0):
    """Cosine-like logits, with a prototype that most rows like."""
    logits = torch.rand(rows, prototypes, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    logits[:, 0] = logits[:, 0] * 0.1 + 0.9
    return logits


def test_hand_worked_one_iteration():
    # exp(logits) = 1 2 / 3 4; columns to sum one: 1/4 1/3 / 3/4 2/3; rows to sum one: 3/7 4/7 / 9/17 8/17.
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).log()
    wanted = torch.tensor([[3 / 7, 4 / 7], [9 / 17, 8 / 17]])
    assert torch.allclose(sinkhorn_knopp(logits, 1.0, iterations=1), wanted)


@pytest.mark.parametrize("temp", [0.04, 0.07, 1.0])
@pytest.mark.parametrize(("rows", "prototypes"), [(12, 6), (4, 50), (1, 9), (100, 3)])
def test_equals_the_published_steps_in_float64(rows, prototypes, temp):
    logits = made(rows, prototypes)
    found = sinkhorn_knopp(logits, temp)
    assert torch.allclose(found, naive(logits, temp), atol=1e-6, rtol=1e-3)
    if rows > 1:
        assert not torch.allclose(found, torch.softmax(logits / temp, dim=-1), atol=1e-2)


def test_both_marginals_hold_after_convergence():
    found = sinkhorn_knopp(made(12, 6), 0.3, iterations=300)
    assert torch.allclose(found.sum(dim=1), torch.ones(12), atol=1e-5)
    assert torch.allclose(found.sum(dim=0), torch.full((6,), 2.0), atol=1e-4)


def test_three_iterations_even_out_the_use():
    logits = made(256, 8)
    use = sinkhorn_knopp(logits, 0.07).sum(dim=0) / 256
    plain = torch.softmax(logits / 0.07, dim=-1).sum(dim=0) / 256
    assert plain.max() > 0.6
    assert use.max() < 0.25
    assert use.min() > 0.1


def test_a_constant_cancels_and_a_liking_of_one_prototype_by_all_cancels():
    logits = made()
    wanted = sinkhorn_knopp(logits, 0.07)
    assert torch.allclose(sinkhorn_knopp(logits + 3.0, 0.07), wanted, atol=1e-4)
    liked = logits.clone()
    liked[:, 2] += 0.5
    assert torch.allclose(sinkhorn_knopp(liked, 0.07), wanted, atol=1e-4)


def test_order_of_rows_and_prototypes_moves_with_the_result():
    logits = made()
    rows, prototypes = torch.randperm(12), torch.randperm(6)
    found = sinkhorn_knopp(logits[rows][:, prototypes], 0.07)
    assert torch.allclose(found, sinkhorn_knopp(logits, 0.07)[rows][:, prototypes], atol=1e-6)


@pytest.mark.parametrize("scale", [4.0, 100.0, 1e6])
def test_logits_beyond_the_range_of_exp_stay_finite(scale):
    found = sinkhorn_knopp(made() * scale, 0.04)
    assert found.isfinite().all()
    assert torch.allclose(found.sum(dim=1), torch.ones(12), atol=1e-5)


def test_large_logits_are_exact_where_float64_can_tell():
    # Up to e^50 apart, the range of cosines at temperature 0.04, on top of a level where exp overflows float32.
    logits = made() + 4.0
    assert torch.allclose(sinkhorn_knopp(logits, 0.04), naive(logits, 0.04), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("level", [-4.0, -4.5, -5.0, -40.0])
def test_a_prototype_out_of_sight_leaves_the_others_evened_out(level):
    # 100 and more below the best logit of a row in units of the temperature: what float32 cannot hold.
    logits = made(64, 8, seed=3)
    logits[:, 5] = level
    found = sinkhorn_knopp(logits, 0.05)
    others = [0, 1, 2, 3, 4, 6, 7]
    wanted = naive(logits[:, others], 0.05)
    assert torch.allclose(found[:, others], wanted, atol=1e-4)
    assert not torch.allclose(torch.softmax(logits[:, others] / 0.05, dim=-1), wanted, atol=0.1)


def test_half_precision_and_autocast_change_nothing():
    logits = made(40, 30).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sinkhorn_knopp(logits, 0.04)
    assert found.dtype == torch.float32
    assert torch.equal(found, sinkhorn_knopp(logits.float(), 0.04))


def test_logits_are_left_alone():
    logits = made()
    before = logits.clone()
    sinkhorn_knopp(logits, 1.0)
    assert torch.equal(logits, before)


def test_no_rows_at_all():
    assert sinkhorn_knopp(torch.zeros(0, 5), 0.04).shape == (0, 5)


def test_padding_by_hand():
    # The table of `test_hand_worked_one_iteration`; between its rows one that would turn it round, if it counted.
    logits = torch.tensor([[1.0, 2.0], [900.0, 1.0], [3.0, 4.0]]).log()
    found = sinkhorn_knopp(logits, 1.0, torch.tensor([True, False, True]), iterations=1)
    assert torch.allclose(found, torch.tensor([[3 / 7, 4 / 7], [0.0, 0.0], [9 / 17, 8 / 17]]))


@pytest.mark.parametrize("fill", [0.0, 40.0, -40.0])
def test_no_row_feels_padding(fill):
    logits = made()
    padded, real = torch.cat([logits[:5], torch.full((4, 6), fill), logits[5:]]), torch.ones(16, dtype=torch.bool)
    real[5:9] = False
    found = sinkhorn_knopp(padded, 0.07, real)
    assert torch.allclose(found[real], sinkhorn_knopp(logits, 0.07), atol=1e-6)
    assert not found[5:9].any()
    # What a caller has to say: counted as rows, they change everything.
    assert not torch.allclose(sinkhorn_knopp(padded, 0.07)[real], found[real], atol=1e-2)


def test_nothing_but_padding():
    assert not sinkhorn_knopp(made(), 0.07, torch.zeros(12, dtype=torch.bool)).any()


def test_sums_are_over_all_processes(monkeypatch):
    # The other process holds a copy of the same rows: every sum doubles, which must cancel.
    wanted = sinkhorn_knopp(made(), 0.07)
    monkeypatch.setattr(sinkhorn, "all_reduce_sum", lambda own: own * 2)
    assert torch.allclose(sinkhorn_knopp(made(), 0.07), wanted, atol=1e-6)


WORKER = """
import sys
import torch
import torch.distributed as dist
from opendino.losses.centering import Centering
from opendino.losses.sinkhorn import sinkhorn_knopp

folder, rank, split = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
logits = torch.load(f"{folder}/logits.pt", weights_only=True)
own = logits[:split] if rank == 0 else logits[split:]
center, other = (Centering(logits.shape[1], patches=True) for _ in range(2))
center(own, 0.05)
# The same with padding, of which process 0 may have nothing else.
padded, real = torch.cat([own, torch.full((3, logits.shape[1]), 50.0)]), torch.arange(len(own) + 3) < len(own)
other(padded, 0.05, real)
found = [sinkhorn_knopp(own, 0.05), center.center, sinkhorn_knopp(padded, 0.05, real)[real], other.center]
torch.save(found, f"{folder}/found_{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("split", [5, 0])
def test_two_processes_find_what_one_finds(tmp_path, split):
    logits = made()
    logits[3:] *= 0.5  # the processes differ in their largest logit
    torch.save(logits, tmp_path / "logits.pt")
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(rank), str(split)]) for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    parts = [torch.load(tmp_path / f"found_{rank}.pt", weights_only=True) for rank in range(2)]
    for which in (0, 2):
        found = torch.cat([part[which] for part in parts])
        assert torch.allclose(found, sinkhorn_knopp(logits, 0.05), atol=1e-6)
    for _, center, _, padded in parts:
        assert torch.allclose(center.flatten(), 0.1 * logits.mean(dim=0), atol=1e-7)
        assert torch.allclose(padded, center, atol=1e-7)


def test_many_prototypes_lose_no_mass():
    """Each number is some 1e-5 of a row; products of a matrix and a vector are off by as much on a CPU."""
    logits = torch.randn(4, 65536, generator=torch.Generator().manual_seed(0)) * 0.05
    exact = (logits.double() / 0.07).exp()
    for _ in range(3):
        exact = exact / exact.sum(dim=0)
        exact = exact / exact.sum(dim=1, keepdim=True)
    found = sinkhorn_knopp(logits, 0.07).double()
    assert (found.sum(dim=1) - 1).abs().max() < 5e-7
    assert (found - exact).abs().sum(dim=1).max() < 1e-6
