# SPDX-License-Identifier: Apache-2.0
"""Agreement of unit features without prototypes, and the coding rate that keeps them apart (SimDINO).

Nothing is sharpened or centred: features of two views are drawn together by their cosine, and a collapse is ruled out
by the volume that the features of a batch take up. `methods/coding_rate.py` puts the terms together.
"""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from opendino.losses.dino import DinoTerms
from opendino.losses.ibot import mean_of_crops
from opendino.precision import full_float32


def coding_rate(unit: Float[Tensor, "B P"], eps: float = 0.5) -> Float32[Tensor, ""]:
    """Half the log-determinant of I + P / (B eps) Z^T Z: the volume of features, 0 only if there are none.

    Equal features give the least, features in all directions alike the most: P / 2 ln(1 + 1 / eps), given enough of
    them.

    Args:
        unit: features of length 1, one row for each image; computed in float32.
        eps: coarseness; smaller ones count finer differences.

    Source: Wu et al. 2025 (SimDINO, arXiv 2502.10385), equation 9; the published code has eps where the paper has its
        square, and so have we.
    """
    with torch.autocast(unit.device.type, enabled=False), full_float32():
        z = unit.float()
        rows, width = z.shape
        # The two products have the same determinant; the smaller one is cheaper.
        gram = z @ z.T if rows < width else z.T @ z
        whole = torch.eye(len(gram), device=z.device) + width / (rows * eps) * gram
        return torch.linalg.cholesky_ex(whole)[0].diagonal().log().sum()


def balance(rows: int, width: int) -> float:
    """Weight of the coding rate beside the cosines, (P + B) / (P B): the published heuristic."""
    return (width + rows) / (width * rows)


def cosine_loss(
    student_globals: Float[Tensor, "G B P"], student_locals: Float[Tensor, "L B P"], teacher: Float[Tensor, "G B P"]
) -> DinoTerms:
    """1 - cosine of every student crop and every teacher crop of another view, mean over pairs and images.

    Args:
        student_globals: unit features of the global crops, in the teacher's order.
        student_locals: unit features of the local crops; L may be 0.
        teacher: unit features of the unmasked global crops.

    Source: Wu et al. 2025, equation 8: half the squared distance of unit features.
    """
    student_globals, student_locals, teacher = (t.float() for t in (student_globals, student_locals, teacher))
    n_globals, n_locals = len(teacher), len(student_locals)
    n_pairs = max(n_globals * (n_globals - 1) + n_locals * n_globals, 1)
    of_all = teacher.sum(dim=0)
    local = n_locals * n_globals - (student_locals * of_all).sum(dim=-1).mean(dim=1).sum()
    others = (student_globals * (of_all - teacher)).sum(dim=-1).mean(dim=1).sum()
    return DinoTerms(local=local / n_pairs, global_=(n_globals * (n_globals - 1) - others) / n_pairs)


def cosine_patch_loss(
    student: Float[Tensor, "M P"], teacher: Float[Tensor, "M P"], masks_weight: Float[Tensor, " M"], rows: int
) -> Float32[Tensor, ""]:
    """1 - cosine of the masked patches: mean within each masked crop, summed, over the number of all global crops.

    Args:
        student: unit features of the masked patches, from the student's mask tokens.
        teacher: unit features of the same patches, which the teacher saw.
        masks_weight: one over the number of masked patches of the patch's crop.
        rows: global crops in the batch, masked or not.
    """
    apart = 1 - (student.float() * teacher.float()).sum(dim=-1)
    return mean_of_crops(apart, masks_weight, rows)
