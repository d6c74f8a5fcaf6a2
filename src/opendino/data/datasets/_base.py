# SPDX-License-Identifier: Apache-2.0
"""The one interface of all data sets: index -> encoded bytes or path, image, label, name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int64

from opendino.data.decode import Decoded, decode


@dataclass(frozen=True)
class DecodeOptions:
    """How the images of a data set are decoded; see `opendino.data.decode`."""

    channels: int = 3
    orient: bool = True
    value_range: tuple[float, float] | None = None


DEFAULT = DecodeOptions()


class ImageDataset(ABC):
    """Images by index, in a fixed order, with optional labels.

    Attributes:
        name: what the data set was opened from.
        options: how its images are decoded.
        targets: label of every image, int64, or None.
        classes: name of every label; position = label. Empty without labels.
        columns: arguments of `open_dataset` that named columns, for opening other images in the same way.
    """

    name: str
    options: DecodeOptions
    columns: Mapping[str, str] = MappingProxyType({})
    targets: Int64[np.ndarray, " n"] | None = None
    classes: list[str]

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def read(self, index: int) -> bytes | Path:
        """The encoded image, or the path to it."""

    @abstractmethod
    def identify(self, index: int) -> str:
        """A name that the user can find the image by."""

    def image(self, index: int) -> Decoded:
        """The decoded image.

        Raises:
            DataError: it cannot be read; the message begins with its name.
        """
        options = self.options
        return decode(
            self.read(index),
            options.channels,
            orient=options.orient,
            value_range=options.value_range,
            name=self.identify(index),
        )

    def facts(self) -> dict[str, Any]:
        """What has to be the same where a run goes on with these images; plain values."""
        return {"images": len(self)}

    def label(self, index: int) -> int | None:
        """Label of one image, None where the data set has none."""
        return None if self.targets is None else int(self.targets[index])
