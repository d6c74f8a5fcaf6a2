# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy between soft targets and logits: what the DINO and the iBOT term share; read `dino.py` next."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from opendino.losses._chunked import Unprojected, Wanted, chunked_cross_entropy

Pair = tuple[Float[Tensor, "..."] | Unprojected, Float[Tensor, "..."]]
"""Logits, there already or not, and the targets that they are held against; see `cross_entropy`."""


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


def cross_entropies(pairs: Sequence[Pair], temp: float) -> list[Float32[Tensor, "..."]]:
    """`cross_entropy` of several pairs of logits and targets; of those not there yet, a last layer in one go."""
    found: dict[int, Tensor] = {}
    layers: dict[int, list[int]] = {}
    for number, (logits, targets) in enumerate(pairs):
        if isinstance(logits, Unprojected):
            layers.setdefault(id(logits.last.v), []).append(number)
        else:
            found[number] = cross_entropy(logits, targets, temp)
    for numbers in layers.values():
        together = [(logits, targets) for logits, targets in (pairs[number] for number in numbers)]
        found |= zip(numbers, _together(together, temp), strict=True)
    return [found[number] for number in range(len(pairs))]


def _together(pairs: Sequence[tuple[Any, Tensor]], temp: float) -> list[Tensor]:
    """Of pairs of one last layer whose logits are not there yet."""
    rows = torch.cat([logits.rows.flatten(0, -2) for logits, _ in pairs])
    wanted = [Wanted(targets.flatten(0, -2), _shared(logits.shape[:-1], targets)) for logits, targets in pairs]
    found = chunked_cross_entropy(rows, pairs[0][0].last, wanted, temp).split([len(one) for one in wanted])
    return [part.view(logits.shape[:-1]) for part, (logits, _) in zip(found, pairs, strict=True)]


def _shared(axes: torch.Size, targets: Float[Tensor, "*targets K"]) -> Int64[Tensor, " rows"] | None:
    """Which row of targets is for each row of logits, axes that they have in front sharing them; None: in order."""
    own = targets.shape[:-1]
    return None if axes == own else torch.arange(own.numel(), device=targets.device).view(own).expand(axes).flatten()
