# SPDX-License-Identifier: Apache-2.0
"""Full float32 where ten bits of mantissa are too few; used by `losses/koleo.py` and `neighbours/exact.py`."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Matrix products in float32 without TensorFloat-32, whose ten bits of mantissa reorder near neighbours.

    The setting is one of the whole process; on leaving it is what it was.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
