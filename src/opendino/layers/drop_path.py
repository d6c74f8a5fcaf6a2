# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth that computes a residual branch for a random subset of the batch only; used by `block.py`."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opendino.layers.packing import Groups


def kept_rows(rows: int, rate: float) -> int:
    """Rows of a batch whose residual is computed: the floor of rows * (1 - rate), at least one."""
    return max(int(rows * (1 - rate)), 1)


def token_positions(rows: Int[Tensor, " kept"], tokens: int, start: int) -> Int[Tensor, " kept_tokens"]:
    """Positions in a packed sequence of all tokens of `rows`, in a group of `tokens` each that begins at `start`."""
    return (rows[:, None] * tokens + torch.arange(start, start + tokens, device=rows.device)).flatten()


def residual_on_subset(
    x: Float[Tensor, "packed D"],
    groups: Groups,
    rate: float,
    branch: Callable[[Float[Tensor, "kept D"], Groups], Float[Tensor, "kept D"]],
) -> Float[Tensor, "packed D"]:
    """Add `branch` to a random subset of the rows of each group, scaled so that its expectation is kept.

    Time and memory of the branch shrink by about `rate`. The subset is drawn anew per call and per group.

    Args:
        x: packed tokens.
        groups: (B, T) of each group in `x`.
        rate: share of rows left out, in (0, 1).
        branch: residual of packed tokens and their groups.

    Source: Oquab et al. 2023, section 5 "Efficient stochastic depth"; official `layers/block.py`, list path.
    Differs: one index over the packed sequence in place of one gather and one scatter a group; a single
        batch goes the same way at any rate (officially only above 0.1).
    """
    positions, kept_groups, scales, start = [], [], [], 0
    for rows, tokens in groups:
        kept = kept_rows(rows, rate)
        chosen = torch.randperm(rows, device=x.device)[:kept]
        positions.append(token_positions(chosen, tokens, start))
        kept_groups.append((kept, tokens))
        scales.append(rows / kept)
        start += rows * tokens
    index = torch.cat(positions)
    residual = branch(x.index_select(0, index), tuple(kept_groups)).to(x.dtype)
    if len(set(scales)) == 1:
        return x.index_add(0, index, residual, alpha=scales[0])
    weights = torch.cat([residual.new_full((r * t, 1), s) for (r, t), s in zip(kept_groups, scales, strict=True)])
    return x.index_add(0, index, residual * weights)
