# SPDX-License-Identifier: Apache-2.0
"""The patch-level term: the student predicts the teacher's view of the patches it cannot see; read `koleo.py` next.

Which patches those are is decided in `data/masking.py`.
"""

from jaxtyping import Float, Float32
from torch import Tensor

from opendino.losses._chunked import Unprojected
from opendino.losses._cross_entropy import cross_entropy
from opendino.losses.dino import STUDENT_TEMP


def ibot_loss(
    student: Float[Tensor, "M K"] | Unprojected,
    teacher: Float[Tensor, "M K"],
    masks_weight: Float[Tensor, " M"],
    rows: int,
    *,
    student_temp: float = STUDENT_TEMP,
) -> Float32[Tensor, ""]:
    """Cross-entropy of the masked patches: mean within each masked crop, summed, over the number of all global crops.

    The divisor counts the crops without a mask too. With half of the crops masked, as published, the term is
    therefore half of the mean over masked crops, and starts near 0.5 ln K.

    Args:
        student: logits of the masked patches, from the student's mask tokens; M may be 0, then the loss is 0.
        teacher: probabilities over the prototypes of the same patches, which the teacher saw.
        masks_weight: one over the number of masked patches of the patch's crop.
        rows: global crops in the batch, masked or not.
        student_temp: temperature of the student's softmax.

    Source: Zhou et al. 2022, section 3; official `loss/ibot_patch_loss.py`, `forward_masked`.
    """
    return mean_of_crops(cross_entropy(student, teacher, student_temp), masks_weight, rows)


def mean_of_crops(
    of_patches: Float32[Tensor, " M"], masks_weight: Float[Tensor, " M"], rows: int
) -> Float32[Tensor, ""]:
    """What `ibot_loss` makes of the cross-entropies of the masked patches."""
    return (of_patches * masks_weight.float()).sum() / rows
