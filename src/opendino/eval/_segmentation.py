# SPDX-License-Identifier: Apache-2.0
"""Counts, figures and augmentation of semantic segmentation; `segment.py` uses them."""

import numpy as np
import torch
from jaxtyping import Float32, Int
from PIL import Image
from torch import Tensor

from opendino.data.crops import Resized, flip, resize, size_of
from opendino.data.decode import Decoded
from opendino.data.photometric import hue_image, saturation_image

IGNORE = -1
"""Class of a pixel that is not counted."""

_CLASS_SHARE = 0.75  # of a crop that one class may fill
_TRIES = 10
Mask = Int[np.ndarray, "_ _"]


def confusion(predicted: Int[Tensor, "*p"], target: Int[Tensor, "*p"], classes: int) -> Int[Tensor, "K K"]:
    """How often a pixel of class i was called j, without ignored pixels."""
    counted = target >= 0
    pairs = target[counted].long() * classes + predicted[counted].long()
    return torch.bincount(pairs.flatten(), minlength=classes**2).reshape(classes, classes)


def figures(matrix: Int[Tensor, "K K"]) -> dict[str, float]:
    """`mIoU`, `mAcc` and `aAcc` in percent; a class that neither occurs nor is predicted does not count.

    Source: mmsegmentation's mean IoU, nan mean over classes.
    """
    counts = matrix.double()
    right, occurs, called = counts.diag(), counts.sum(dim=1), counts.sum(dim=0)
    iou = right / (occurs + called - right)
    return {
        "mIoU": 100 * float(iou.nanmean()),
        "mAcc": 100 * float((right / occurs).nanmean()),
        "aAcc": 100 * float(right.sum() / counts.sum()),
    }


def class_iou(matrix: Int[Tensor, "K K"]) -> list[float]:
    """Intersection over union of each class in percent; nan where a class neither occurs nor is predicted."""
    counts = matrix.double()
    right = counts.diag()
    return (100 * right / (counts.sum(dim=1) + counts.sum(dim=0) - right)).tolist()


def scaled(image: Decoded, short: int, long: int) -> Resized:
    """The image as large as its shorter side stays within `short` and its longer side within `long` pixels."""
    height, width = size_of(image)
    factor = min(short / min(height, width), long / max(height, width))
    return resize(image, max(round(height * factor), 1), max(round(width * factor), 1))


def scaled_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """The nearest class of every pixel of another size."""
    rows = ((np.arange(size[0]) + 0.5) * mask.shape[0] / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * mask.shape[1] / size[1]).astype(np.int64)
    return mask[rows[:, None], columns[None]]


def random_crop(mask: Mask, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Row and column of a square in which no class fills more than three quarters, if ten tries find one.

    Source: mmsegmentation's RandomCrop, cat_max_ratio 0.75.
    """
    top = left = 0
    for _ in range(_TRIES):
        top = int(rng.integers(max(mask.shape[0] - size, 0) + 1))
        left = int(rng.integers(max(mask.shape[1] - size, 0) + 1))
        part = mask[top : top + size, left : left + size]
        counts = np.bincount(part[part >= 0].ravel())
        if np.count_nonzero(counts) > 1 and counts.max() < _CLASS_SHARE * counts.sum():
            break
    return top, left


def distort(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Random brightness, contrast, saturation and hue, each with probability one half.

    Source: mmsegmentation's PhotoMetricDistortion: brightness +-32, contrast and saturation 0.5-1.5, hue +-18 of 180.
    Differs: contrast always comes before saturation and hue.
    """
    yes, amount = rng.random(4) < 0.5, rng.random(4) * 2 - 1
    if yes[0] or yes[1]:
        pixels = np.asarray(image, dtype=np.float32)
        pixels = (pixels + 32 * amount[0] * yes[0]) * (1 + 0.5 * amount[1] * yes[1])
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if yes[2]:
        image = saturation_image(image, 1 + 0.5 * float(amount[2]))
    return hue_image(image, float(amount[3]) * 18 / 180) if yes[3] else image


def augmented(
    image: Decoded,
    mask: Mask,
    *,
    short: int,
    long: int,
    ratio: tuple[float, float],
    crop: int,
    rng: np.random.Generator,
) -> tuple[Resized, Mask]:
    """A random scale, square, side and colour of an image with its mask; smaller squares stay smaller.

    Args:
        image: decoded.
        mask: classes.
        short: limit of the shorter side at ratio 1; 0 keeps the image's own size as that.
        long: limit of the longer side at ratio 1.
        ratio: limits of the random factor.
        crop: side of the square.
        rng: source of every random number.
    """
    factor = float(rng.uniform(*ratio))
    height, width = size_of(image)
    base = (short, long) if short else (min(height, width), max(height, width))
    image = scaled(image, round(base[0] * factor), round(base[1] * factor))
    mask = scaled_mask(mask, size_of(image))
    top, left = random_crop(mask, crop, rng)
    if isinstance(image, Image.Image):
        right, bottom = min(left + crop, image.width), min(top + crop, image.height)
        image = image.crop((left, top, right, bottom))
    else:
        image = image[top : top + crop, left : left + crop]
    mask = mask[top : top + crop, left : left + crop]
    if rng.random() < 0.5:
        image, mask = flip(image), mask[:, ::-1]
    return (distort(image, rng) if isinstance(image, Image.Image) and image.mode == "RGB" else image), mask


def to_square(picture: Float32[Tensor, "C h w"], mask: Mask, side: int) -> tuple[Tensor, Tensor]:
    """Picture and mask with zeros and ignored pixels at the right and the bottom, up to a square."""
    full = picture.new_zeros(picture.shape[0], side, side)
    full[:, : picture.shape[1], : picture.shape[2]] = picture
    classes = torch.full((side, side), IGNORE, dtype=torch.int64)
    classes[: mask.shape[0], : mask.shape[1]] = torch.from_numpy(np.ascontiguousarray(mask))
    return full, classes
