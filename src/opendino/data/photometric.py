# SPDX-License-Identifier: Apache-2.0
"""Colour jitter, greyscale, Gaussian blur and solarisation, each a pure function of an image and its parameters.

Two families: `*_image` work on 8-bit Pillow images and give torchvision's numbers for those; `*_array` work on float32
arrays [H, W, C] in 0..1. `blur` and `solarize` take the pixels of both. `augment.py` draws the parameters.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image, ImageChops

Jitter = Callable[[Any, float], Any]
"""An operation on an image or an array, with a factor; returns the kind it was given."""

BLUR_KERNEL = 9
_SQUARES = (np.arange(BLUR_KERNEL, dtype=np.float32) - BLUR_KERNEL // 2) ** 2
_SMALL = 64  # side of the largest image that is blurred by matrix products
_NEGLIGIBLE = 1e-9  # weight of a tap that float32 cannot show in a sum of values up to 255
_LUMA = np.array([0.2989, 0.587, 0.114], dtype=np.float32)


def brightness_image(image: Image.Image, factor: float) -> Image.Image:
    """Blend with black: 0 is black, 1 the image, 2 twice as bright.

    Source: torchvision `functional.adjust_brightness` for Pillow images.
    """
    return Image.blend(Image.new(image.mode, image.size, 0), image, factor)


def contrast_image(image: Image.Image, factor: float) -> Image.Image:
    """Blend with the mean grey of the image: 0 is flat grey, 1 the image.

    Source: torchvision `functional.adjust_contrast` for Pillow images.
    """
    grey = image if image.mode == "L" else image.convert("L")
    mean = int(np.asarray(grey).mean() + 0.5)
    flat = Image.new(image.mode, image.size, mean if image.mode == "L" else (mean, mean, mean))
    return Image.blend(flat, image, factor)


def saturation_image(image: Image.Image, factor: float) -> Image.Image:
    """Blend with the image's greys: 0 is greyscale, 1 the image; grey images stay as they are.

    Source: torchvision `functional.adjust_saturation` for Pillow images.
    """
    return image if image.mode == "L" else Image.blend(grey_image(image), image, factor)


def hue_image(image: Image.Image, shift: float) -> Image.Image:
    """Turn the hue by `shift` of a full circle, -0.5..0.5; grey images stay as they are.

    Source: torchvision `functional.adjust_hue` for Pillow images: 8-bit HSV, the shift truncated to 1/255.
    """
    if image.mode == "L":
        return image
    hsv = image.convert("HSV")
    steps = Image.new("HSV", image.size, (int(shift * 255) % 256, 0, 0))
    return ImageChops.add_modulo(hsv, steps).convert("RGB")


def grey_image(image: Image.Image) -> Image.Image:
    """The image's luma in each channel.

    Source: torchvision `functional.to_grayscale`.
    """
    return image if image.mode == "L" else image.convert("L").convert("RGB")


def solarize(pixels: Shaped[np.ndarray, "C H W"]) -> Shaped[np.ndarray, "C H W"]:
    """Invert the values of 128 (of 128 / 255 for floats) and more; only for 1 and 3 channels, where values are light.

    Source: torchvision `functional.solarize`, threshold 128.
    """
    if pixels.dtype == np.uint8:
        return np.minimum(pixels, ~pixels)  # 255 - v is the smaller one exactly where v >= 128
    if pixels.shape[0] not in (1, 3):
        return pixels
    return np.where(pixels >= np.float32(128 / 255), 1 - pixels, pixels)


def blur(pixels: Shaped[np.ndarray, "C H W"], sigma: float) -> Shaped[np.ndarray, "C H W"]:
    """Gaussian blur of 9 x 9 pixels with mirrored edges, every channel by itself; uint8 is rounded to uint8.

    Args:
        pixels: uint8 or float32.
        sigma: standard deviation in pixels.

    Source: torchvision `functional.gaussian_blur`, kernel 9.
    Differs: rows and columns one after the other, so a value exactly between two integers may round the other way.
    """
    kernel = gaussian_kernel(sigma)
    blurred = pixels.astype(np.float32)
    if max(pixels.shape[1:]) <= _SMALL:
        blurred = _blur_matrix(pixels.shape[1], kernel) @ blurred @ _blur_matrix(pixels.shape[2], kernel).T
    else:
        blurred = _convolve(np.swapaxes(_convolve(np.swapaxes(blurred, 1, 2), kernel), 1, 2), kernel)
    return np.rint(blurred, out=blurred).astype(np.uint8) if pixels.dtype == np.uint8 else blurred


def gaussian_kernel(sigma: float) -> Float32[np.ndarray, "9"]:
    """Nine samples of a Gaussian at -4..4, summing to one."""
    weights = np.exp(_SQUARES * np.float32(-0.5 / sigma**2))
    return weights / weights.sum()


def _blur_matrix(size: int, kernel: Float32[np.ndarray, "9"]) -> Float32[np.ndarray, "n n"]:
    """The blur of a line of pixels as a matrix: for small images two products are faster than eighteen additions."""
    return (kernel @ line_shifts(size)).reshape(size, size)


@lru_cache(maxsize=64)
def line_shifts(size: int) -> Float32[np.ndarray, "9 nn"]:
    """For each tap of the kernel, the matrix that moves a line of pixels by it and mirrors the ends."""
    taps = np.arange(BLUR_KERNEL) - BLUR_KERNEL // 2
    period = max(1, 2 * size - 2)
    source = np.abs((np.arange(size) + taps[:, None]) % period)
    source = np.where(source < size, source, period - source)
    return (source[..., None] == np.arange(size)).astype(np.float32).reshape(BLUR_KERNEL, size * size)


def _convolve(pixels: Float32[np.ndarray, "C H W"], kernel: Float32[np.ndarray, "9"]) -> Float32[np.ndarray, "C H W"]:
    """The blur along the last axis; the kernel is symmetric, so taps at the same distance share a product."""
    radius, size = BLUR_KERNEL // 2, pixels.shape[2]
    mirrored = [pixels[..., radius:0:-1], pixels, pixels[..., -2 : -2 - radius : -1]]
    padded = np.concatenate(mirrored, axis=2)
    out = padded[..., radius : radius + size] * kernel[radius]
    pair = np.empty_like(out)
    for distance in range(1, radius + 1):
        weight = kernel[radius + distance]
        if weight < _NEGLIGIBLE:
            break
        left, right = radius - distance, radius + distance
        np.add(padded[..., left : left + size], padded[..., right : right + size], out=pair)
        out += np.multiply(pair, weight, out=pair)
    return out


def brightness_array(pixels: Float32[np.ndarray, "H W C"], factor: float) -> Float32[np.ndarray, "H W C"]:
    """Values times the factor, kept in 0..1."""
    return np.clip(pixels * np.float32(factor), 0, 1)


def contrast_array(pixels: Float32[np.ndarray, "H W C"], factor: float) -> Float32[np.ndarray, "H W C"]:
    """Blend with the mean: of the luma for 3 channels, of each channel by itself for any other number.

    Source: torchvision `functional.adjust_contrast` for tensors (1 and 3 channels).
    """
    mean = (pixels @ _LUMA).mean() if pixels.shape[2] == 3 else pixels.mean(axis=(0, 1))
    return np.clip(mean + (pixels - mean) * np.float32(factor), 0, 1)


def saturation_array(pixels: Float32[np.ndarray, "H W C"], factor: float) -> Float32[np.ndarray, "H W C"]:
    """Blend with the luma; only 3 channels are colours, others stay as they are."""
    if pixels.shape[2] != 3:
        return pixels
    grey = grey_array(pixels)
    return np.clip(grey + (pixels - grey) * np.float32(factor), 0, 1)


def hue_array(pixels: Float32[np.ndarray, "H W C"], shift: float) -> Float32[np.ndarray, "H W C"]:
    """Turn the hue by `shift` of a full circle; only 3 channels are colours, others stay as they are.

    Value and chroma do not change with the hue, so each new channel is the value less a share of the chroma.
    """
    if pixels.shape[2] != 3:
        return pixels
    value, low = pixels.max(axis=2), pixels.min(axis=2)
    chroma = value - low
    red, green, blue = np.moveaxis(pixels, 2, 0)
    safe = np.where(chroma == 0, np.float32(1), chroma)
    sextant = np.where(
        value == red, (green - blue) / safe, np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    turned = sextant + np.float32(6 * shift)
    offsets = np.array([5, 3, 1], dtype=np.float32)  # of red, green and blue
    place = np.mod(turned[..., None] + offsets, np.float32(6))
    share = np.clip(np.minimum(place, 4 - place), 0, 1)
    return (value[..., None] - chroma[..., None] * share).astype(np.float32)


def grey_array(pixels: Float32[np.ndarray, "H W C"]) -> Float32[np.ndarray, "H W C"]:
    """The luma in each of 3 channels; any other number of channels stays as it is."""
    return np.repeat((pixels @ _LUMA)[..., None], 3, axis=2) if pixels.shape[2] == 3 else pixels


JITTER_IMAGE: tuple[Jitter, ...] = (brightness_image, contrast_image, saturation_image, hue_image)
JITTER_ARRAY: tuple[Jitter, ...] = (brightness_array, contrast_array, saturation_array, hue_array)
