# SPDX-License-Identifier: Apache-2.0
"""A single image file, as a data set of one; a folder of them is `folder.py`."""

from pathlib import Path

from opendino.data.datasets._base import DEFAULT, DecodeOptions, ImageDataset
from opendino.data.datasets._paths import shown


class OneImageDataset(ImageDataset):
    """One image, without a label.

    Args:
        source: of the image.
        options: how it is decoded.
    """

    def __init__(self, source: Path, options: DecodeOptions = DEFAULT) -> None:
        self.path, self.name, self.options, self.classes = source, str(source), options, []

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> Path:  # noqa: ARG002  there is one
        """Its path."""
        return self.path

    def identify(self, index: int) -> str:  # noqa: ARG002
        """Its path."""
        return shown(self.name)
