# SPDX-License-Identifier: Apache-2.0
import numpy as np
import torch

from opendino.neighbours.matrix import InMemory, Matrix


def test_memory_gives_what_it_has():
    rows = torch.tensor([[3.0, 4.0], [0.0, -6.0]])
    matrix = InMemory(rows)
    assert matrix.largest == 6
    assert torch.equal(matrix.take(np.array([1])), rows[1:])
    assert torch.equal(matrix.block(0, 1), rows[:1])
    assert isinstance(matrix, Matrix)


def test_another_format_is_made_once():
    matrix = InMemory(torch.randn(5, 2))
    half = matrix.short(1, 3, torch.bfloat16)
    assert torch.equal(half, matrix.features[1:3].bfloat16())
    assert matrix.short(0, 5, torch.bfloat16).data_ptr() == half.data_ptr() - 2 * half.element_size()
    assert matrix.short(0, 5, torch.float32).data_ptr() == matrix.features.data_ptr()
