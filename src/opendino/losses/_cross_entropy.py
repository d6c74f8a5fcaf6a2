# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy between soft targets and logits: what the DINO and the iBOT term share; read `dino.py` next."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor


def cross_entropy(
    logits: Float[Tensor, "*rows K"], targets: Float[Tensor, "*rows K"], temp: float
) -> Float32[Tensor, "*rows"]:
    """Cross-entropy of each row, in nats: minus the target-weighted mean of log softmax(logits / temp).

    Args:
        logits: the student's prototype logits; computed in float32 whatever comes in.
        targets: weights of the prototypes, not differentiated; a row need not sum to one.
        temp: the student's temperature, above 0.
    """
    log_probs = torch.log_softmax(logits.float() / temp, dim=-1)
    return -(targets.detach().float() * log_probs).sum(dim=-1)
