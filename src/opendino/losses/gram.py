# SPDX-License-Identifier: Apache-2.0
"""The dense term: how alike the patches of a crop are to each other stays as an earlier network said; for `adapt`."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor


def gram_loss(
    student: Float[Tensor, "B N D"], anchor: Float[Tensor, "B N E"], hidden: Bool[Tensor, "B N"] | None = None
) -> Float32[Tensor, ""]:
    """Mean squared difference of two networks' cosines between the patches of each crop.

    Only relations are compared, so the features themselves may turn, and the two widths may differ.

    Args:
        student: patch tokens that learn; computed in float32 whatever comes in, also under autocast.
        anchor: what the earlier network says of the same patches; takes no gradient.
        hidden: patches that the student does not see; pairs with one of them do not count. A crop without two visible
            patches counts as 0.

    Returns:
        The mean over pairs of visible patches, then over crops: from 0 to 4.

    Source: Simeoni et al. 2025 (DINOv3), the section on Gram anchoring.
    Differs: a mean over pairs in place of their sum, so that a weight means the same at every size; masked patches are
        left out.
    """
    with torch.autocast(student.device.type, enabled=False):
        own = F.normalize(student.float(), dim=-1)
        wanted = F.normalize(anchor.detach().float(), dim=-1)
        squares = (own @ own.mT - wanted @ wanted.mT).square()
        seen = torch.ones_like(squares[..., 0]) if hidden is None else (~hidden).float()
        # A patch with itself is no pair.
        pairs = seen[:, :, None] * seen[:, None, :] * (1 - torch.eye(seen.shape[1], device=seen.device))
        return ((squares * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)).mean()
