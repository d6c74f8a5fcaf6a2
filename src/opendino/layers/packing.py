# SPDX-License-Identifier: Apache-2.0
"""Crops of several sizes as one token sequence, so that every linear layer runs once; read `block.py` next."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

Groups = tuple[tuple[int, int], ...]
"""(B, T) of each crop group in a packed sequence, in order; the packed length is the sum of B * T."""


def pack(xs: Sequence[Float[Tensor, "_ _ D"]]) -> tuple[Float[Tensor, "packed D"], Groups]:
    """Lay the tokens of all groups end to end: group by group, image by image, token by token."""
    groups = tuple((x.shape[0], x.shape[1]) for x in xs)
    return torch.cat([x.flatten(0, 1) for x in xs]), groups


def unpack(packed: Float[Tensor, "packed F"], groups: Groups) -> list[Float[Tensor, "_ _ F"]]:
    """Give each group back as [B, T, F]; the results are views of `packed`."""
    parts = packed.split([rows * tokens for rows, tokens in groups])
    return [part.view(rows, tokens, -1) for part, (rows, tokens) in zip(parts, groups, strict=True)]


def starts(groups: Groups) -> list[int]:
    """Where each group begins in the packed sequence."""
    return list(accumulate((rows * tokens for rows, tokens in groups[:-1]), initial=0))


def places(wanted: Sequence[Int[Tensor, " _"]], groups: Groups) -> Int[Tensor, " n"]:
    """Where tokens stand in the packed sequence, from their places in each group."""
    return torch.cat([some + start for some, start in zip(wanted, starts(groups), strict=True)])
