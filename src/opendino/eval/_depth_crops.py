# SPDX-License-Identifier: Apache-2.0
"""How published depth protocols cut, turn and colour images with their depth maps."""

from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from opendino.data.crops import Box, cut, flip, size_of
from opendino.data.decode import Decoded
from opendino.data.samplers import permute

_CROPS = {"kitti": (352, 704)}
_CROP = (416, 544)
_NYU_BORDER = (45, 471, 43, 608)  # rows and columns that the white frame of NYU leaves, at 480x640
_KITTI = (352, 1216)
_DEGREES = 2.5

Depth = Float32[np.ndarray, "_ _"]


def cut_published(layout: str, image: Decoded, depth: Depth, *, training: bool) -> tuple[Decoded, Depth]:
    """The part that a protocol uses: KITTI's lower centre always, NYU without its white frame in training.

    Source: official NYU and KITTI configurations (NYUCrop, KBCrop).
    """
    height, width = size_of(image)
    if layout == "kitti" and height >= _KITTI[0] and width >= _KITTI[1]:
        box = Box(height - _KITTI[0], (width - _KITTI[1]) // 2, *_KITTI)
    elif layout == "nyu" and training and (height, width) == (480, 640):
        top, bottom, left, right = _NYU_BORDER
        box = Box(top, left, bottom - top, right - left)
    else:
        return image, depth
    return cut(image, box), depth[box.top : box.top + box.height, box.left : box.left + box.width]


def random_view(
    train: Any,  # noqa: ANN401  `depth.Measured`, which imports this file
    place: int,
    layout: str,
    crop: tuple[int, int] | None,
    rng: np.random.Generator,
) -> tuple[Decoded, Depth]:
    """The view at a place of the endless row of permutations: turned, mirrored, cut and coloured at random.

    Args:
        train: images with depths.
        place: position in the row.
        layout: whose crops are the default.
        crop: height and width; None takes the published one, or the image where it is smaller.
        rng: source of every random number.
    """
    n = len(train)
    image, depth = train.both(int(permute(place % n, n, 0, place // n)[()]), training=True)
    if isinstance(image, Image.Image) and rng.random() < 0.5:
        image, depth = turned(image, depth, float(rng.uniform(-_DEGREES, _DEGREES)))
    if rng.random() < 0.5:
        image, depth = flip(image), depth[:, ::-1]
    height, width = size_of(image)
    wanted = crop or _CROPS.get(layout, _CROP)
    h, w = min(wanted[0], height), min(wanted[1], width)
    box = Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    image, depth = cut(image, box), depth[box.top : box.top + h, box.left : box.left + w]
    if isinstance(image, Image.Image) and image.mode == "RGB" and rng.random() < 0.5:
        image = coloured(image, rng)
    return image, depth


def turned(image: Image.Image, depth: Depth, degrees: float) -> tuple[Image.Image, Depth]:
    """Both turned about the centre; what comes in from outside has no depth."""
    turned_depth = Image.fromarray(np.ascontiguousarray(depth)).rotate(degrees, Image.Resampling.NEAREST)
    return image.rotate(degrees, Image.Resampling.BILINEAR), np.asarray(turned_depth, dtype=np.float32)


def coloured(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Random gamma 0.9-1.1, brightness 0.75-1.25 and factor of each colour 0.9-1.1.

    Source: official NYU configuration, ColorAug.
    """
    gamma, brightness = rng.uniform(0.9, 1.1), rng.uniform(0.75, 1.25)
    pixels = (np.asarray(image, dtype=np.float32) / 255) ** gamma * brightness * rng.uniform(0.9, 1.1, 3)
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))
