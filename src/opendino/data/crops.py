# SPDX-License-Identifier: Apache-2.0
"""Cutting and resizing: the law of random resized crops, and bicubic resizing for both kinds of image.

The callers are `augment.py` (random crops) and `transforms.py` (centre crops).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image

from opendino.data.decode import Decoded

TRIES = 10
DRAWS = 2 * TRIES + 2
"""Uniform numbers that one `random_box` takes: area and aspect of each try, then row and column."""


Resized = Image.Image | Float32[np.ndarray, "h w C"]
"""An image of another size than the one it was made from."""


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int


def size_of(image: Decoded) -> tuple[int, int]:
    """Height and width in pixels."""
    return (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]


def random_box(
    height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float], draws: Sequence[float]
) -> Box:
    """Rectangle of a random share of the image's area and a random aspect ratio, at a random place.

    Ten tries; when none fits into the image, the largest centred rectangle whose ratio is within `aspect`.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        scale: smallest and largest share of the area.
        aspect: smallest and largest width over height, drawn uniformly in its logarithm.
        draws: `DRAWS` independent uniform numbers in [0, 1).

    Source: torchvision `RandomResizedCrop.get_params`.
    """
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    for attempt in range(TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[2 * attempt])
        ratio = math.exp(log_low + (log_high - log_low) * draws[2 * attempt + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(draws[-2] * (height - h + 1)), int(draws[-1] * (width - w + 1)), h, w)
    return _centred_box(height, width, aspect)


def _centred_box(height: int, width: int, aspect: tuple[float, float]) -> Box:
    ratio = width / height
    w, h = width, height
    if ratio < aspect[0]:
        h = round(width / aspect[0])
    elif ratio > aspect[1]:
        w = round(height * aspect[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def cut(image: Decoded, box: Box) -> Resized:
    """The pixels of a rectangle."""
    if isinstance(image, Image.Image):
        return image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def resize(image: Decoded, height: int, width: int) -> Resized:
    """Bicubic resizing, antialiased when it shrinks.

    Source: torchvision `functional.resize` for Pillow images. Arrays go through the same filter, one channel at a
    time in float32, and are kept in 0..1.
    """
    if isinstance(image, Image.Image):
        return image.resize((width, height), Image.Resampling.BICUBIC)
    out = np.empty((height, width, image.shape[2]), dtype=np.float32)
    for channel in range(image.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
        out[..., channel] = np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(out, 0, 1, out=out)


def flip(image: Decoded) -> Decoded:
    """Left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if isinstance(image, Image.Image) else image[:, ::-1]


def pixels_of(image: Decoded) -> Shaped[np.ndarray, "C H W"]:
    """Pixels, channels first: uint8 of a Pillow image, float32 of an array."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
