# SPDX-License-Identifier: Apache-2.0
"""Images with masks whose numbers are classes from 0; `_pixel_data.py` finds the files, `segment.py` uses both."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from opendino.data.crops import size_of
from opendino.data.decode import Decoded
from opendino.errors import DataError
from opendino.eval._pixel_data import CITYSCAPES_IDS, Pairs
from opendino.eval._segmentation import IGNORE


@dataclass(frozen=True)
class MaskedConfig:
    """Images with masks; see `_pixel_data.py` for the layouts.

    Attributes:
        train: folder or file; of a published layout its root.
        val: the same for held-out images; a published layout may name the same root.
        layout: pairs, parquet, ade20k, voc or cityscapes; found by what is there when empty.
        classes: number of classes; that of the layout, or the largest number in the training masks, when None.
        ignore: numbers in masks that do not count; 255 never does.
        reduce_zero: 0 is no class either, and 1 becomes the first (as in ADE20k); None takes the layout's rule.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; None where the file says it.
        orient: whether the EXIF orientation is applied to images (masks have none).
    """

    train: str = ""
    val: str = ""
    layout: str = ""
    classes: int | None = None
    ignore: tuple[int, ...] = ()
    reduce_zero: bool | None = None
    value_range: tuple[float, float] | None = None
    orient: bool = False


class Masked:
    """Images with masks whose numbers are classes from 0, or `IGNORE`.

    Args:
        pairs: images and masks.
        config: which numbers count.
        layout: whose rules hold.
        classes: number of classes; None does not check.
    """

    def __init__(self, pairs: Pairs, config: MaskedConfig, layout: str, classes: int | None = None) -> None:
        self.pairs, self.config, self.layout, self.classes = pairs, config, layout, classes
        self.reduce_zero = layout == "ade20k" if config.reduce_zero is None else config.reduce_zero

    def __len__(self) -> int:
        return len(self.pairs)

    def mask(self, index: int) -> Int[np.ndarray, "H W"]:
        """Classes of an image's pixels.

        Raises:
            DataError: a number is no class.
        """
        values = self.pairs.target(index).astype(np.int64)
        one = self.pairs.pairs[index]
        if self.layout == "cityscapes" and str(one.target).endswith("_labelIds.png"):
            table = np.full(256, 255)
            table[list(CITYSCAPES_IDS)] = list(CITYSCAPES_IDS.values())
            known = (values >= 0) & (values < len(table))
            values = np.where(known, table[np.where(known, values, 0)], values)
        void = np.isin(values, [255, *self.config.ignore])
        if self.reduce_zero:
            void |= values == 0
            values = values - 1
        values = np.where(void, IGNORE, values)
        if self.classes is not None and (values.max() >= self.classes or values.min() < IGNORE):
            found = int(values.max() if values.max() >= self.classes else values.min())
            raise DataError(
                f"{one.name}: its mask has class {found}, and there are {self.classes}; set data.classes, or name "
                "numbers that do not count in data.ignore"
            )
        return values

    def both(self, index: int) -> tuple[Decoded, Int[np.ndarray, "H W"]]:
        """Image and mask, of one size.

        Raises:
            DataError: their sizes differ.
        """
        image, mask = self.pairs.image(index), self.mask(index)
        size = size_of(image)
        if size != mask.shape:
            raise DataError(
                f"{self.pairs.pairs[index].name}: the image has {size[1]}x{size[0]} pixels and its mask "
                f"{mask.shape[1]}x{mask.shape[0]}; they have to be of one size"
            )
        return image, mask
