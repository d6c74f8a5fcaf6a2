# SPDX-License-Identifier: Apache-2.0
"""How far a student's features are from those of a teacher that has no prototypes; read `dino.py` for one that has.

Which features are compared with which is `methods/distill.py`.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

FeatureLoss = Literal["cosine", "smooth_l1", "mixed"]
COSINE_SHARE = 0.9
"""Share of the cosine in the mixed loss, the smooth L1 having the rest, as AM-RADIO weighs them for patches."""


def feature_loss(
    student: Float[Tensor, "*rows D"], teacher: Float[Tensor, "*rows D"], kind: FeatureLoss = "mixed"
) -> Float32[Tensor, "*rows"]:
    """Distance of each row of features to its target, 0 where they agree.

    Args:
        student: projected to the teacher's width; computed in float32 whatever comes in.
        teacher: targets, not differentiated.
        kind: "cosine" is `cosine_distance`, "smooth_l1" is `standard_distance`, "mixed" nine parts of the first and
            one of the second: the direction leads, and lengths are learned too.

    Source: Ranzinger et al. 2024 (AM-RADIO), section 3.2, for the mixture.
    Differs: AM-RADIO takes the cosine alone for its summary token; here the kind is the same for CLS and patches.
    """
    if kind == "cosine":
        return cosine_distance(student, teacher)
    if kind == "smooth_l1":
        return standard_distance(student, teacher)
    return COSINE_SHARE * cosine_distance(student, teacher) + (1 - COSINE_SHARE) * standard_distance(student, teacher)


def cosine_distance(student: Float[Tensor, "*rows D"], teacher: Float[Tensor, "*rows D"]) -> Float32[Tensor, "*rows"]:
    """One minus the cosine of each row with its target, 0 to 2."""
    return 1 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)


def standard_distance(student: Float[Tensor, "*rows D"], teacher: Float[Tensor, "*rows D"]) -> Float32[Tensor, "*rows"]:
    """Smooth L1 of each row to its target brought to mean 0 and deviation 1, mean over the channels.

    Targets are standardised because teachers differ in scale by orders of magnitude, and the loss is square below 1.

    Source: Baevski et al. 2022 (data2vec), section 3.3, targets without the parameters of their norm.
    """
    wanted = F.layer_norm(teacher.detach().float(), teacher.shape[-1:])
    return F.smooth_l1_loss(student.float(), wanted, reduction="none").mean(dim=-1)
