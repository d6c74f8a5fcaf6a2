# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F

from opendino.eval import _spectrum
from opendino.eval.health import effective_rank


def of_spectrum(values, n=400, seed=0):
    """Centred features whose covariance has exactly these eigenvalues (times n)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, len(values), generator=generator, dtype=torch.float64)
    u, _, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    v, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return u * torch.tensor(values, dtype=torch.float64).sqrt() @ v.T


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.5])
def test_decay_of_a_known_spectrum(alpha):
    values = [(i + 1) ** -alpha for i in range(24)]
    assert _spectrum.alpha_req(of_spectrum(values) + 3) == pytest.approx(alpha, abs=1e-6)
    assert _spectrum.alpha_req(100 * of_spectrum(values)) == pytest.approx(alpha, abs=1e-6)
    assert math.isnan(_spectrum.alpha_req(torch.randn(2, 8)))


def test_rank_of_a_known_spectrum():
    # Four equal singular values: rank 4; of 3 and 1 their entropy.
    assert effective_rank(of_spectrum([1.0] * 4)) == pytest.approx(4, rel=1e-6)
    p = torch.tensor([0.75, 0.25])
    assert effective_rank(of_spectrum([9.0, 1.0])) == pytest.approx(math.exp(float(-(p * p.log()).sum())), rel=1e-6)


def test_lidar_counts_directions_in_which_images_differ_more_than_views():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(600, 3, generator=generator)
    noise = 0.1 * torch.randn(600, 8, 6, generator=generator)
    views = F.pad(centres, (0, 3))[:, None] + noise
    assert _spectrum.lidar(views) == pytest.approx(3, abs=0.3)
    # Stretching a direction changes views and images alike.
    stretched = views * torch.tensor([50.0, 1, 1, 1, 1, 1])
    assert _spectrum.lidar(stretched) == pytest.approx(_spectrum.lidar(views), abs=0.05)
    assert _spectrum.lidar(torch.ones(10, 4, 6)) == 0.0
    pure = torch.randn(600, 8, 6, generator=generator)
    assert _spectrum.lidar(pure) > 5  # images that differ by chance alone differ everywhere


def test_uniformity_and_alignment_worked_by_hand():
    square = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    # Four sides of squared length 2, two diagonals of 4.
    assert _spectrum.uniformity(3 * square) == pytest.approx(math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6))
    assert _spectrum.uniformity(torch.ones(5, 3)) == pytest.approx(0)
    assert _spectrum.alignment(square, 7 * square) == pytest.approx(0)
    assert _spectrum.alignment(square, -square) == pytest.approx(4)
    assert _spectrum.alignment(square, square.roll(1, 0)) == pytest.approx(2)


def test_deviation_is_one_when_spread_evenly():
    assert _spectrum.mean_std(torch.randn(4000, 64)) == pytest.approx(1, abs=0.02)
    assert _spectrum.mean_std(torch.ones(10, 8)) == pytest.approx(0, abs=1e-7)


def test_patches_that_agree_and_patches_that_do_not():
    assert _spectrum.patch_similarity(torch.ones(2, 5, 3)) == pytest.approx(1)
    assert _spectrum.patch_similarity(torch.eye(4)[None]) == pytest.approx(0)
    one = torch.tensor([[[1.0, 0], [1, 0], [0, 1]]])
    assert _spectrum.patch_similarity(one) == pytest.approx(1 / 3)  # one pair of three agrees
    patches = F.normalize(torch.randn(2, 50, 8), dim=2)
    patches[0, :3] *= 4
    assert _spectrum.high_norm_share(patches) == pytest.approx(3 / 100)
    assert _spectrum.high_norm_share(10 * patches) == pytest.approx(3 / 100)


def test_near_prototypes_count_once():
    base = torch.linalg.qr(torch.randn(16, 16))[0]
    doubled = torch.cat([base, 3 * base[:5] + 0.01 * torch.randn(5, 16), -base[:2]])
    assert _spectrum.unique_prototypes(doubled) == 18
    assert _spectrum.unique_prototypes(base.repeat(200, 1)) == 16  # also across blocks of a thousand
    assert _spectrum.unique_prototypes(torch.ones(1, 4)) == 1


def test_divergence_is_cross_entropy_less_entropy():
    p, q = torch.randn(6, 5).softmax(1), torch.randn(6, 5).softmax(1)
    wanted = F.kl_div(q.log(), p, reduction="batchmean")
    assert _spectrum.teacher_kl(p, q.log()) == pytest.approx(float(wanted), rel=1e-5)
    assert _spectrum.teacher_kl(p, p.log()) == pytest.approx(0, abs=1e-6)
    sure = torch.tensor([[1.0, 0.0]])
    assert _spectrum.teacher_kl(sure, torch.tensor([[0.5, 0.5]]).log()) == pytest.approx(math.log(2))
