# SPDX-License-Identifier: Apache-2.0
"""Rows of features as search and clustering read them: block by block, in the number format that is wanted.

Read next: `exact.py`; `curate/_features.py` has those on the disk.
"""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor


@runtime_checkable
class Matrix(Protocol):
    """Rows of features that are read block by block.

    Attributes:
        dim: width.
        largest: bound of all absolute values.
    """

    dim: int
    largest: float

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def take(self, positions: Int64[np.ndarray, " m"]) -> Float32[Tensor, "m D"]:
        """Some rows, float32."""
        ...

    def block(self, start: int, stop: int) -> Float32[Tensor, "m D"]:
        """Rows from start to stop, float32."""
        ...

    def short(self, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, "m D"]:
        """Rows from start to stop in another number format, which is kept where the rows are."""
        ...


class Held:
    """Rows in another number format, kept in memory where the float32 ones are."""

    _held: Float32[Tensor, "n D"] | None = None
    _converted: Tensor | None = None

    def block(self, start: int, stop: int) -> Float32[Tensor, "m D"]:
        """Rows from start to stop."""
        raise NotImplementedError

    def short(self, start: int, stop: int, dtype: torch.dtype) -> Float[Tensor, "m D"]:
        """Rows from start to stop in a number format."""
        if self._held is None or dtype == torch.float32:
            return self.block(start, stop).to(dtype)
        if self._converted is None or self._converted.dtype != dtype:
            self._converted = self._held.to(dtype)
        return self._converted[start:stop]


class InMemory(Held):
    """Features that are there already, such as centroids.

    Args:
        features: taken as they are.
    """

    def __init__(self, features: Float[Tensor, "n D"]) -> None:
        self.features, self.dim = features.float(), features.shape[1]
        self._held = self.features
        self.largest = float(self.features.abs().max()) if len(features) else 1.0

    def __len__(self) -> int:
        return len(self.features)

    def take(self, positions: Int64[np.ndarray, " m"]) -> Float32[Tensor, "m D"]:
        """Some rows."""
        return self.features.index_select(0, torch.from_numpy(positions))

    def block(self, start: int, stop: int) -> Float32[Tensor, "m D"]:
        """Rows from start to stop."""
        return self.features[start:stop]
