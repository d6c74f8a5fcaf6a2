# SPDX-License-Identifier: Apache-2.0
"""Gradient clipping for each sub-network by itself; read `ema.py` next."""

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def clip_gradients(networks: Mapping[str, nn.Module], max_norm: float) -> dict[str, Tensor]:
    """Scale down the gradients of each network whose norm passes `max_norm`.

    The backbone and each head are clipped apart, so a head with a large gradient does not slow the backbone.

    Args:
        networks: sub-networks by name.
        max_norm: largest norm that is left as it is; 0 for no clipping.

    Returns:
        The norm of each network before clipping, not yet waited for on a GPU; NaN or infinite where a gradient is.

    Source: official `train/train.py`.
    """
    # With an infinite limit the factor is exactly 1.
    limit = max_norm or math.inf
    norms = {name: nn.utils.clip_grad_norm_(network.parameters(), limit) for name, network in networks.items()}
    # Of gradients that several processes hold in shares, it is the norm of all of them.
    return {name: norm.full_tensor() if isinstance(norm, DTensor) else norm for name, norm in norms.items()}
