# SPDX-License-Identifier: Apache-2.0
"""Position tables of the sizes that a model has seen, so that each is resized once; used by `optimize.py`."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Grid = tuple[int, int]
"""(h, w): patches down and across."""


class Tables:
    """The tables of the sizes seen last.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int = 16) -> None:
        self.most = most
        self._kept: OrderedDict[Grid, Tensor] = OrderedDict()

    @torch.no_grad()
    def of(self, grid: Grid, make: Callable[[Grid], Tensor]) -> Float[Tensor, "1 tokens D"]:
        """The table of a size, made where it is not kept."""
        table = self._kept.pop(grid, None)
        if table is None:
            with torch.inference_mode(False):
                table = make(grid).detach()
        self._kept[grid] = table
        if len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return table
