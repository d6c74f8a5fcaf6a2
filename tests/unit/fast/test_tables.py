# SPDX-License-Identifier: Apache-2.0
import torch

from opendino.fast.tables import Tables


def test_each_size_is_made_once_while_it_is_kept():
    made = []

    def make(grid):
        made.append(grid)
        return torch.full((1, 1, 2), float(grid[0]))

    tables = Tables(most=2)
    for grid in [(1, 1), (2, 1), (1, 1), (3, 1), (1, 1), (2, 1)]:
        assert tables.of(grid, make)[0, 0, 0] == grid[0]
    assert made == [(1, 1), (2, 1), (3, 1), (2, 1)]  # (2, 1) was the one not used for longest
