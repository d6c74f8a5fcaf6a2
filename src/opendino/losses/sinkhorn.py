# SPDX-License-Identifier: Apache-2.0
"""Teacher targets that use all prototypes equally, by Sinkhorn-Knopp; the alternative is `centering.py`."""

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from opendino.distributed import all_reduce_max, all_reduce_sum

_IN_SIGHT = 2.0**-120
"""Least sum of a prototype, as a share of the largest one, that can be made up for in float32."""


@torch.no_grad()
def sinkhorn_knopp(
    logits: Float[Tensor, "rows K"], temp: float, real: Bool[Tensor, " rows"] | None = None, *, iterations: int = 3
) -> Float32[Tensor, "rows K"]:
    """Rows of exp(logits / temp), scaled towards equal use of all prototypes by all rows of all processes.

    Each iteration scales prototypes to equal sums, then rows to sum one. Only the scales of prototypes (`u`) and of
    rows (`v`) are computed, never the matrix in between, so the cost is one exponential and a few matrix-vector
    products. Constant factors cancel in the last scaling of rows, which is why no number of rows is asked for.

    Args:
        logits: the teacher's prototype logits of this process; computed in float32 whatever comes in, also under
            autocast. There may be none here while other processes have some: the call still takes part in their sums.
        temp: the teacher's temperature, about 0.04 to 0.07.
        real: False for rows that are padding: they have no mass, so no other row feels them; None where none is.
        iterations: rounds of scaling; 3 as published.

    Returns:
        Probabilities that sum to one over the prototypes; zeros in rows of padding.

    Source: Caron et al. 2020 (SwAV), section 3.1; official `sinkhorn_knopp_teacher` in both loss files.
    Differs: the largest logit is taken off before the exponential, here per row, and given back in the first scale;
        the official code overflows where a logit passes 88 `temp`.
    """
    with torch.autocast(logits.device.type, enabled=False):
        scores = logits.to(torch.float32, copy=True).div_(temp)
        row_max = scores.max(dim=1).values
        kernel = scores.sub_(row_max.unsqueeze(1)).exp_()
        # Scales that turn the kernel back into exp(scores), up to one factor that all processes share.
        v = _of_real(torch.exp(row_max - all_reduce_max(_largest(_of_real(row_max, real, -torch.inf)))), real)
        for _ in range(iterations - 1):
            u = _prototype_scales(kernel, v)
            v = _of_real(1 / torch.mv(kernel, u), real)
        if iterations:
            kernel.mul_(_prototype_scales(kernel, v))
        # A sum and no product: over many prototypes torch.mv is off by 1e-5 on a CPU, and with it the mass of a row.
        return kernel.mul_(_of_real(1 / kernel.sum(dim=1), real).unsqueeze(1))


def _of_real(values: Float32[Tensor, " rows"], real: Bool[Tensor, " rows"] | None, other: float = 0.0) -> Tensor:
    """Values of the rows that are no padding, and `other` for those that are."""
    return values if real is None else values.masked_fill(~real, other)


def _largest(values: Float32[Tensor, " rows"]) -> Float32[Tensor, ""]:
    return torch.cat([values, values.new_full((1,), -torch.inf)]).max()


def _prototype_scales(kernel: Float32[Tensor, "rows K"], v: Float32[Tensor, " rows"]) -> Float32[Tensor, " K"]:
    """Scales that give all prototypes the same sum over the rows of all processes, up to a factor.

    A prototype that no row comes near (its sum vanishes beside the largest) is scaled as if it were just in sight: it
    takes no part, and the others are evened out as if it were not there.
    """
    # torch.mv and not a matrix product: it stays in full float32 where TF32 is allowed.
    sums = all_reduce_sum(torch.mv(kernel.T, v))
    sums = torch.maximum(sums, sums.max() * _IN_SIGHT).clamp_min(torch.finfo(torch.float32).tiny)
    # From the root of _IN_SIGHT to its inverse, so that neither these nor the scales of rows leave float32.
    return sums.min() / sums * _IN_SIGHT**-0.5
