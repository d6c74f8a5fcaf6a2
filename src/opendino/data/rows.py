# SPDX-License-Identifier: Apache-2.0
"""Some images of a data set, as a data set: a held-out part, or a sample that is the same every time."""

from pathlib import Path

import numpy as np
from jaxtyping import Int

from opendino.data.datasets import ImageDataset
from opendino.data.samplers import permute

_SEED = 0  # the same sample in every run, so that runs can be compared


class Rows(ImageDataset):
    """Some images of a data set, in a given order.

    Args:
        dataset: the whole.
        rows: positions in it.
        targets: labels of these images; by default the data set's own.
    """

    def __init__(
        self, dataset: ImageDataset, rows: Int[np.ndarray, " n"], targets: Int[np.ndarray, " n"] | None = None
    ) -> None:
        self._dataset, self._rows = dataset, rows
        self.name, self.options, self.classes = dataset.name, dataset.options, dataset.classes
        self.columns = dataset.columns
        own = None if dataset.targets is None else dataset.targets[rows]
        self.targets = own if targets is None else targets

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> bytes | Path:
        """The encoded image, or the path to it."""
        return self._dataset.read(int(self._rows[index]))

    def identify(self, index: int) -> str:
        """Its name in the data set."""
        return self._dataset.identify(int(self._rows[index]))


def sample(dataset: ImageDataset, most: int) -> ImageDataset:
    """At most so many images of a data set, in its order, the same ones every time."""
    if len(dataset) <= most:
        return dataset
    return Rows(dataset, np.sort(permute(np.arange(most), len(dataset), _SEED, 0)))
