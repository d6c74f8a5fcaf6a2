# SPDX-License-Identifier: Apache-2.0
"""The deterministic way of an image into a network, for evaluation; training crops are in `augment.py`."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from opendino.data.collate import normalize
from opendino.data.crops import Box, Resized, cut, pixels_of, resize, size_of
from opendino.data.decode import Decoded, match_channels
from opendino.data.fast import resized
from opendino.data.normalization import normalization
from opendino.data.photo import Photo
from opendino.errors import ConfigError


class EvalTransform:
    """Resize the shorter side, cut the centre, normalise.

    Args:
        size: side of the result in pixels, or (height, width).
        resize: length of the shorter side after resizing; by default 256 / 224 of the shorter side of `size`.
        mean: of each channel, for values in 0..1; by default those of `normalization`.
        std: of each channel, for values in 0..1.
        channels: of the images and of the result.

    Source: torchvision `Resize(resize, BICUBIC)`, `CenterCrop(size)`, `ToTensor`, `Normalize` for Pillow images.
    Differs: a `Photo` is resized by torch, two levels of 255 from Pillow at most, and may be decoded at reduced size.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 224,
        resize: int | None = None,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        channels: int = 3,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        self.resize = round(min(self.size) * 256 / 224) if resize is None else resize
        self.mean, self.std = normalization(channels, mean, std)
        self.channels = channels
        if min(self.size) < 1 or self.resize < 1:
            raise ConfigError(f"size {self.size} with resize {self.resize} leaves no pixel; use 1 or more")

    def __call__(self, image: Decoded | Photo) -> Float32[Tensor, "C h w"]:
        """One image to what the network takes; a photograph that is not decoded yet goes the fast way."""
        height, width = shorter_side_to(image.size if isinstance(image, Photo) else size_of(image), self.resize)
        return self.to_tensor(centre(self.fit(image, height, width), self.size))

    def fit(self, image: Decoded | Photo, height: int, width: int) -> Resized:
        """One image, decoded, with the network's channels, at another size.

        Raises:
            DataError: it has other channels, or is damaged.
        """
        if isinstance(image, Photo):
            return match_channels(resized(image, height, width), self.channels)
        image = match_channels(image, self.channels)
        return image if (height, width) == size_of(image) else resize(image, height, width)

    def to_tensor(self, image: Decoded) -> Float32[Tensor, "C H W"]:
        """An image as it is, normalised."""
        pixels = torch.from_numpy(np.array(pixels_of(image), order="C"))
        return normalize(pixels[None], self.mean, self.std)[0]


def shorter_side_to(size: tuple[int, int], length: int) -> tuple[int, int]:
    """Height and width whose shorter one is `length`; the longer is rounded down, as torchvision does."""
    height, width = size
    if height <= width:
        return length, int(length * width / height)
    return int(length * height / width), length


def centre(image: Decoded, size: tuple[int, int]) -> Resized:
    """The centre of an image, with black around it where the image is smaller."""
    height, width = size_of(image)
    if height < size[0] or width < size[1]:
        image = _pad(image, size)
        height, width = size_of(image)
    return cut(image, Box(round((height - size[0]) / 2.0), round((width - size[1]) / 2.0), *size))


def _pad(image: Decoded, size: tuple[int, int]) -> Resized:
    height, width = size_of(image)
    top, left = max(0, size[0] - height) // 2, max(0, size[1] - width) // 2
    padded = (max(height, size[0]), max(width, size[1]))
    if isinstance(image, np.ndarray):
        out = np.zeros((*padded, image.shape[2]), dtype=np.float32)
        out[top : top + height, left : left + width] = image
        return out
    return image.crop((-left, -top, padded[1] - left, padded[0] - top))
