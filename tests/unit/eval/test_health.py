# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from opendino.eval import health


def with_spectrum(singular, n, dim, seed=0):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(n, len(singular))))[0]
    right = np.linalg.qr(rng.normal(size=(dim, len(singular))))[0]
    return torch.from_numpy(left @ np.diag(singular) @ right.T)


@pytest.mark.parametrize(("n", "dim"), [(40, 10), (10, 40)])
def test_effective_rank_of_known_spectra(n, dim):
    assert health.effective_rank(with_spectrum([3.0] * 6, n, dim)) == pytest.approx(6, rel=1e-6)
    # p = 3/4, 1/4: exp(H) = 4 / 3^(3/4)
    assert health.effective_rank(with_spectrum([3.0, 1.0], n, dim)) == pytest.approx(4 / 3**0.75, rel=1e-6)


def test_effective_rank_of_a_collapse_and_of_its_limits():
    one = torch.randn(1, 8)
    assert health.effective_rank(one.repeat(50, 1)) == pytest.approx(1, abs=1e-4)
    assert health.effective_rank(torch.zeros(5, 3)) == 0
    assert math.isnan(health.effective_rank(torch.full((5, 3), math.nan)))
    assert health.effective_rank(torch.eye(7)) == pytest.approx(7)


def test_effective_rank_ignores_scale_and_rotation():
    x = torch.randn(60, 12, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    assert health.effective_rank(100 * x @ rotation) == pytest.approx(health.effective_rank(x), rel=1e-9)


def test_centring_takes_the_common_mean_away():
    x = with_spectrum([1.0, 1.0, 1.0], 200, 10)
    shifted = x - x.mean(dim=0) + 50
    assert health.effective_rank(shifted, center=True) == pytest.approx(health.effective_rank(x - x.mean(0)), rel=1e-6)
    assert health.effective_rank(shifted) < 1.5


def test_mean_cosine_is_the_mean_over_pairs():
    x = torch.randn(9, 5) + 0.5
    unit = F.normalize(x, dim=1).double()
    pairs = [float(unit[i] @ unit[j]) for i, j in itertools.combinations(range(9), 2)]
    assert health.mean_cosine(x) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert health.mean_cosine(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-1)
    assert health.mean_cosine(torch.ones(4, 3)) == pytest.approx(1)


def test_prototype_usage_by_hand():
    scores = torch.eye(5)[[0, 0, 1, 1]]
    use = health.prototype_usage(scores)
    assert (use.used, use.share, use.perplexity) == (2, pytest.approx(0.4), pytest.approx(2))
    # 3 of 4 images on one prototype: exp(H(3/4, 1/4))
    assert health.prototype_usage(torch.eye(5)[[0, 0, 0, 1]]).perplexity == pytest.approx(4 / 3**0.75)
    assert health.prototype_usage(torch.eye(5)[[3, 3, 3]]) == (1, pytest.approx(0.2), pytest.approx(1))


def test_prototype_usage_is_that_of_logits_or_probabilities():
    logits = torch.randn(64, 20)
    assert health.prototype_usage(logits) == health.prototype_usage((logits / 0.1).softmax(1))


def test_entropies_tell_the_two_collapses_apart():
    sure = torch.eye(4)  # every image sure, prototypes used equally
    assert health.entropy_ratio(sure) == (pytest.approx(1), pytest.approx(0))
    one = torch.eye(4)[[2, 2, 2]]  # one prototype for all
    assert health.entropy_ratio(one) == (pytest.approx(0), pytest.approx(0))
    flat = torch.full((3, 4), 0.25)  # nothing decided
    assert health.entropy_ratio(flat) == (pytest.approx(1), pytest.approx(1))
    # two sure images on two of four prototypes: ln 2 / ln 4
    assert health.entropy_ratio(torch.eye(4)[[0, 1]]).of_mean == pytest.approx(0.5)


def test_entropy_in_float32_for_half_precision():
    p = (torch.randn(32, 5000) * 3).softmax(dim=1)
    half, full = health.entropy_ratio(p.bfloat16()), health.entropy_ratio(p)
    assert half.mean == pytest.approx(full.mean, abs=2e-3)
    assert half.of_mean == pytest.approx(full.of_mean, abs=2e-3)


def test_dead_dimensions():
    x = torch.randn(100, 8)
    assert health.dead_dimensions(x) == 0
    x[:, 0], x[:, 5] = 0.0, 3.0
    assert health.dead_dimensions(x) == pytest.approx(0.25)
    assert health.dead_dimensions(torch.randn(1, 6).repeat(50, 1)) == 1
    assert health.dead_dimensions(torch.zeros(4, 3)) == 1


def test_summary_gathers_all():
    x = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    figures = health.summary(x)
    assert figures["norm_mean"] == pytest.approx(3)
    assert figures["norm_std"] == pytest.approx(2)
    assert figures["mean_cosine"] == pytest.approx(0.8)
    assert figures["effective_rank"] == pytest.approx(health.effective_rank(x))
    with_prototypes = health.summary(x, torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]))
    assert set(with_prototypes) - set(figures) == {
        "prototypes_used", "prototypes_share", "prototypes_perplexity", "entropy_of_mean", "mean_entropy",
    }  # fmt: skip
    assert all(isinstance(value, float) for value in with_prototypes.values())
