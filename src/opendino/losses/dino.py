# SPDX-License-Identifier: Apache-2.0
"""The image-level term: each student crop predicts what the teacher says of the other views; read `ibot.py` next.

Targets come from `centering.py` or `sinkhorn.py`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from opendino.losses._chunked import Unprojected
from opendino.losses._cross_entropy import cross_entropies

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
    n_globals, n_locals = teacher.shape[0], student_locals.shape[0]
    n_pairs = max(n_globals * (n_globals - 1) + n_locals * n_globals, 1)
    # A sum over teachers of cross-entropies is the cross-entropy against the sum of the teachers' rows.
    of_all = teacher.sum(dim=0)
    of_others = torch.stack([_sum_without(teacher, crop) for crop in range(n_globals)])
    terms = cross_entropies([(student_locals, of_all), (student_globals, of_others)], student_temp)
    local, global_ = (term.mean(dim=1).sum() / n_pairs for term in terms)
    return DinoTerms(local=local, global_=global_)


def _sum_without(teacher: Float[Tensor, "G B K"], crop: int) -> Float[Tensor, "B K"]:
    # Not the sum of all minus one: small probabilities would drown in the rounding of large ones.
    return torch.cat([teacher[:crop], teacher[crop + 1 :]]).sum(dim=0)
