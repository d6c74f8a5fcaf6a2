# SPDX-License-Identifier: Apache-2.0
"""The image-level term: each student crop predicts what the teacher says of the other views; read `ibot.py` next.

Targets come from `centering.py` or `sinkhorn.py`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from opendino.losses._chunked import Unprojected
from opendino.losses._cross_entropy import Pair, cross_entropies

STUDENT_TEMP = 0.1
"""Temperature of the student's softmax in the published method, for the DINO and the iBOT term."""


class DinoTerms(NamedTuple):
    """The two parts of the DINO loss; their sum is the mean over all pairs.

    Attributes:
        local: share of the pairs with a local student crop; 0 without local crops.
        global_: share of the pairs of two global crops.
    """

    local: Float32[Tensor, ""]
    global_: Float32[Tensor, ""]


def dino_loss(
    student_globals: Float[Tensor, "G B K"] | Unprojected,
    student_locals: Float[Tensor, "L B K"] | Unprojected,
    teacher: Float[Tensor, "G B K"],
    *,
    student_temp: float = STUDENT_TEMP,
) -> DinoTerms:
    """Cross-entropy of every student crop against every teacher crop of another view, mean over pairs and images.

    With 2 global and 8 local crops there are 2 global pairs and 16 local ones, and each weighs 1/18.

    Args:
        student_globals: logits of the global crops, which the student sees masked, in the teacher's order.
        student_locals: logits of the local crops; L may be 0.
        teacher: probabilities over the prototypes, already centred and sharpened, of the unmasked global crops.
        student_temp: temperature of the student's softmax.

    Source: Caron et al. 2021, equation 3; Oquab et al. 2023, section 4, "Image-level objective"; official
        `loss/dino_clstoken_loss.py` and the weights of its terms in `train/ssl_meta_arch.py`.
    Differs: without local crops the global pairs weigh 1 together; the official code still counts one local pair,
        which leaves them 2/3.
    """
    pairs = dino_pairs(student_globals, student_locals, teacher)
    return dino_terms(*cross_entropies(pairs, student_temp), n_globals=len(teacher))


def dino_pairs(
    student_globals: Float[Tensor, "G B K"] | Unprojected,
    student_locals: Float[Tensor, "L B K"] | Unprojected,
    teacher: Float[Tensor, "G B K"],
) -> tuple[Pair, Pair]:
    """What `dino_loss` compares: local crops with all of the teacher's, global crops with those of other views."""
    # A sum over teachers of cross-entropies is the cross-entropy against the sum of the teachers' rows.
    of_others = torch.stack([_sum_without(teacher, crop) for crop in range(len(teacher))])
    return (student_locals, teacher.sum(dim=0)), (student_globals, of_others)


def dino_terms(of_locals: Float32[Tensor, "L B"], of_globals: Float32[Tensor, "G B"], *, n_globals: int) -> DinoTerms:
    """What `dino_loss` makes of the cross-entropies of `dino_pairs`."""
    n_pairs = max(n_globals * (n_globals - 1) + len(of_locals) * n_globals, 1)
    return DinoTerms(*(crops.mean(dim=1).sum() / n_pairs for crops in (of_locals, of_globals)))


def _sum_without(teacher: Float[Tensor, "G B K"], crop: int) -> Float[Tensor, "B K"]:
    # Not the sum of all minus one: small probabilities would drown in the rounding of large ones.
    return torch.cat([teacher[:crop], teacher[crop + 1 :]]).sum(dim=0)
