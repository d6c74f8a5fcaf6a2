# SPDX-License-Identifier: Apache-2.0
"""Label-free figures of quality from the spectrum of features and from pairs of views; `health.py` gathers them.

RankMe is `health.effective_rank`. All computations are in float64 on the CPU: a few thousand images suffice.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_LIDAR_DELTA = 1e-4
_NORM_FACTOR = 2.0


def alpha_req(features: Float[Tensor, "n D"]) -> float:
    """Decay of the covariance's spectrum: alpha of eigenvalue_i ~ i^-alpha, by least squares in the logarithms.

    Around 1 for good representations; 0 is white, large values leave few directions. Not a number where fewer than
    three eigenvalues are there.

    Source: Agrawal et al. 2022, "alpha-ReQ", section 3.
    """
    x = features.detach().cpu().double()
    x = x - x.mean(dim=0)
    gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    if not bool(gram.isfinite().all()):
        return math.nan
    eigenvalues = torch.linalg.eigvalsh(gram).flip(0)
    eigenvalues = eigenvalues[eigenvalues > 1e-10 * eigenvalues[0]]
    if len(eigenvalues) < 3:
        return math.nan
    rank = torch.arange(1, len(eigenvalues) + 1, dtype=torch.float64).log()
    rank = rank - rank.mean()
    return -float((rank * eigenvalues.log()).sum() / rank.square().sum())


def lidar(views: Float[Tensor, "n q D"]) -> float:
    """LiDAR: effective rank of what differs between images, in units of what differs between views of one image.

    Args:
        views: features of q random views of each of n images; q of 2 or more.

    Source: Thilak et al. 2023, "LiDAR", equation 3, delta 1e-4.
    """
    x = views.detach().cpu().double()
    centres = x.mean(dim=1)
    within = (x - centres[:, None]).flatten(0, 1)
    between = centres - centres.mean(dim=0)
    dim = x.shape[2]
    scatter = within.T @ within / max(len(within) - len(x), 1) + _LIDAR_DELTA * torch.eye(dim, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(scatter)
    whitened = between @ (vectors * values.clamp(min=1e-12).rsqrt())
    # The paper takes eigenvalues of the whitened scatter, so squares of these singular values.
    spectrum = torch.linalg.svdvals(whitened).square()
    if float(spectrum.sum()) == 0:
        return 0.0
    return math.exp(float(torch.special.entr(spectrum / spectrum.sum()).sum()))


def uniformity(features: Float[Tensor, "n D"], t: float = 2.0) -> float:
    """Log of the mean of exp(-t |x - y|^2) over pairs of unit features: 0 when all agree, -2 t or so when spread.

    Source: Wang and Isola 2020, "Understanding contrastive representation learning", equation 8.
    """
    unit = F.normalize(features.detach().cpu().double(), dim=1)
    squared = torch.pdist(unit).square()
    return float(squared.mul(-t).exp().mean().log())


def alignment(first: Float[Tensor, "n D"], second: Float[Tensor, "n D"]) -> float:
    """Mean squared distance of the unit features of two views of the same images, between 0 and 4.

    Source: Wang and Isola 2020, equation 7, alpha 2.
    """
    a, b = (F.normalize(part.detach().cpu().double(), dim=1) for part in (first, second))
    return float((a - b).square().sum(dim=1).mean())


def mean_std(features: Float[Tensor, "n D"]) -> float:
    """Mean deviation of the dimensions of unit features, times the root of D: 1 when spread evenly, 0 when all agree.

    Source: Chen and He 2021, "SimSiam", section 4.1.
    """
    unit = F.normalize(features.detach().cpu().double(), dim=1)
    return float(unit.std(dim=0, correction=0).mean()) * math.sqrt(unit.shape[1])


def patch_similarity(patches: Float[Tensor, "B N D"]) -> float:
    """Mean cosine of different patches of one image, over images; drifts upwards where dense features wear out.

    Source: Simeoni et al. 2025 name the drift; the figure is ours.
    """
    unit = F.normalize(patches.detach().cpu().double(), dim=2)
    n = unit.shape[1]
    total = unit.sum(dim=1).square().sum(dim=1) - unit.square().sum(dim=(1, 2))
    return float((total / (n * (n - 1))).mean())


def high_norm_share(patches: Float[Tensor, "B N D"], factor: float = _NORM_FACTOR) -> float:
    """Share of patches whose norm is more than `factor` times the median of all: artefacts, between 0 and 1.

    Args:
        patches: tokens before the final norm, which would hide their lengths.
        factor: published histograms have a gap between the two kinds at about twice the usual norm.

    Source: Darcet et al. 2023, "Vision transformers need registers", section 2.
    Differs: relative to the median, in place of a fixed norm of 150.
    """
    norms = patches.detach().cpu().double().norm(dim=2)
    return float((norms > factor * norms.median()).double().mean())


def unique_prototypes(prototypes: Float[Tensor, "K D"], threshold: float = 0.975) -> int:
    """Number of prototypes that are left when one that is close to an earlier one is dropped.

    Args:
        prototypes: weights of the head's last layer; only directions count.
        threshold: cosine from which two count as one.

    Source: Govindarajan et al. 2024, "On partial prototype collapse", section 3.
    """
    unit = F.normalize(prototypes.detach().float(), dim=1)
    kept = unit[:0]
    for part in unit.split(1024):
        fresh = part[((part @ kept.T).amax(dim=1) < threshold)] if len(kept) else part
        close = (fresh @ fresh.T).triu(1) >= threshold
        alive = torch.ones(len(fresh), dtype=torch.bool, device=fresh.device)
        for row in close.any(dim=1).nonzero().flatten().tolist():
            if alive[row]:
                alive &= ~close[row]
        kept = torch.cat([kept, fresh[alive]])
    return len(kept)


def teacher_kl(teacher: Float[Tensor, "n K"], student: Float[Tensor, "n K"]) -> float:
    """Mean KL divergence of the student's from the teacher's probabilities, in nats: cross-entropy less entropy.

    Args:
        teacher: probabilities, rows sum to 1.
        student: logarithms of probabilities.
    """
    p = teacher.detach().double()
    return float((-torch.special.entr(p) - p * student.detach().double()).sum(dim=1).mean())
