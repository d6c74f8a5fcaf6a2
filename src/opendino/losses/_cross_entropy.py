# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy between soft targets and logits: what the DINO and the iBOT term share; read `dino.py` next."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from opendino.losses._chunked import Unprojected, chunked_cross_entropy


def cross_entropy(
    logits: Float[Tensor, "*rows K"] | Unprojected, targets: Float[Tensor, "*targets K"], temp: float
) -> Float32[Tensor, "*rows"]:
    """Cross-entropy of each row, in nats: minus the target-weighted mean of log softmax(logits / temp).

    Args:
        logits: the student's prototype logits, there already or not; computed in float32 whatever comes in.
        targets: weights of the prototypes, not differentiated; a row need not sum to one. Axes that `logits` has in
            front of theirs share them.
        temp: the student's temperature, above 0.
    """
    if isinstance(logits, Unprojected):
        return _together([(logits, targets)], temp)[0]
    log_probs = torch.log_softmax(logits.float() / temp, dim=-1)
    return -(targets.detach().float() * log_probs).sum(dim=-1)


def cross_entropies(pairs: Sequence[tuple[Tensor | Unprojected, Tensor]], temp: float) -> list[Tensor]:
    """`cross_entropy` of several pairs of logits and targets, of one head; of those not there yet in one go."""
    unprojected = [(logits, targets) for logits, targets in pairs if isinstance(logits, Unprojected)]
    if len(unprojected) == len(pairs):
        return _together(unprojected, temp)
    return [cross_entropy(logits, targets, temp) for logits, targets in pairs]


def _together(pairs: Sequence[tuple[Unprojected, Tensor]], temp: float) -> list[Tensor]:
    rows = torch.cat([logits.rows.flatten(0, -2) for logits, _ in pairs])
    targets = torch.cat([one.flatten(0, -2) for _, one in pairs]) if len(pairs) > 1 else pairs[0][1].flatten(0, -2)
    which, first = [], 0
    for logits, one in pairs:
        axes = one.shape[:-1]
        numbers = torch.arange(first, first + axes.numel(), device=rows.device).view(axes)
        which.append(numbers.expand(logits.shape[:-1]).flatten())
        first += axes.numel()
    in_order = len(rows) == first
    found = chunked_cross_entropy(rows, pairs[0][0].last, targets, None if in_order else torch.cat(which), temp)
    sizes = [logits.shape[:-1].numel() for logits, _ in pairs]
    return [part.view(logits.shape[:-1]) for part, (logits, _) in zip(found.split(sizes), pairs, strict=True)]
