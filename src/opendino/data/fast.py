# SPDX-License-Identifier: Apache-2.0
"""The same views as `augment.py` at several times the speed: simplejpeg, OpenCV and torch's own 8-bit resizing.

The random numbers are the same, so every view shows the same part of the image with the same colours; what differs is
rounding. torch resizes 8-bit images with Pillow's filter (antialiased bicubic; OpenCV's would shrink without
antialiasing), two levels of 255 away at most, or more at hard edges where one side shrinks and the other grows, for
then Pillow may clip in another order. Large JPEGs are decoded at a half, a quarter or an eighth when every view still
shrinks by `GAP`; a cut then moves to the nearest decoded pixel, at most a quarter of a pixel of the view.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from opendino.data.augment import Crops, Look, MultiCrop
from opendino.data.crops import Box
from opendino.data.datasets import ImageDataset
from opendino.data.photo import Photo, open_photo, reduction_for
from opendino.data.photometric import BLUR_KERNEL, gaussian_kernel
from opendino.errors import ConfigError

GAP = 2.0
"""A photograph is decoded at reduced size only where every view is still smaller by this factor."""

PACKAGES = ("simplejpeg", "cv2")
Decoder = Literal["auto", "pillow", "fast"]
Pixels = UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]
"""Grey or colour, as OpenCV takes them."""

_TRUNCATE = -0.4995  # added before OpenCV rounds: Pillow cuts the fraction off when it blends
_LUMA = (0.299, 0.587, 0.114)
_NEGLIGIBLE = 1 / 1024  # weight of a tap that hardly ever moves an 8-bit level


class Chosen(NamedTuple):
    """Which way images take, and why."""

    decoder: Literal["pillow", "fast"]
    reason: str


def choose_decoder(setting: Decoder, name: str = "loader.decoder") -> Chosen:
    """The decoder of a setting; "auto" takes the fast one where its packages can be imported.

    Args:
        setting: "auto", "pillow" or "fast".
        name: of the setting, for the error.

    Raises:
        ConfigError: "fast" was asked for and cannot be had.
    """
    if setting == "pillow":
        return Chosen("pillow", "asked for")
    missing = missing_package()
    if not missing:
        return Chosen("fast", "asked for" if setting == "fast" else "simplejpeg and OpenCV are installed")
    if setting == "fast":
        raise ConfigError(
            f"{name} = fast: {missing} cannot be imported; pip install 'opendino[fast]', or {name}=pillow"
        )
    return Chosen("pillow", f"{missing} cannot be imported; pip install 'opendino[fast]' for several times the speed")


def missing_package() -> str:
    """The first package of the fast way that cannot be imported, or nothing."""
    for name in PACKAGES:
        try:
            __import__(name)
        except ImportError:  # also for a system library that it needs
            return name
    return ""


def keep_to_one_thread() -> None:
    """Have OpenCV work in the thread that calls it: its pool of threads does not survive the fork of workers."""
    import cv2

    cv2.setNumThreads(1)


def fast_views(dataset: ImageDataset, index: int, crops: MultiCrop, rng: np.random.Generator) -> Crops:
    """The views of one image of a data set; one that the fast way cannot take goes to `crops` itself.

    Raises:
        DataError: it cannot be read.
    """
    photo = photo_of(dataset, index)
    if photo is None:
        return crops(dataset.image(index), rng)._replace(slow=True)
    looks = crops.draw(*photo.size, rng)
    reduction = min(reduction_for((look.box.height, look.box.width), (look.size,) * 2, GAP) for look in looks)
    pixels = photo.pixels(reduction)
    views = [show_fast(pixels, _moved(look, photo.size, pixels), bare=crops.bare) for look in looks]
    return Crops(views[:2], views[2:], looks if crops.bare else ())


def photo_of(dataset: ImageDataset, index: int) -> Photo | None:
    """An image of a data set, for the fast way; None for what only `dataset.image` can read."""
    if type(dataset).image is not ImageDataset.image:
        return None  # it makes its images in a way of its own
    options = dataset.options
    source: bytes | Path = dataset.read(index)
    return open_photo(source, options.channels, orient=options.orient, name=dataset.identify(index))


def _moved(look: Look, size: tuple[int, int], pixels: UInt8[np.ndarray, "h w C"]) -> Look:
    """The same look at an image decoded at another size."""
    found = pixels.shape[:2]
    if found == size:
        return look
    box, (down, across) = look.box, (found[0] / size[0], found[1] / size[1])
    top, left = round(box.top * down), round(box.left * across)
    bottom, right = round((box.top + box.height) * down), round((box.left + box.width) * across)
    return look._replace(box=Box(top, left, max(bottom - top, 1), max(right - left, 1)))


def show_fast(pixels: UInt8[np.ndarray, "h w C"], look: Look, *, bare: bool = False) -> UInt8[np.ndarray, "C s s"]:
    """One view of an image of 1 or 3 channels; see `augment.show`.

    Returns:
        A view of an array whose channels come last in memory.
    """
    import cv2

    crop = resize_fast(pixels, look.size, look.size, look.box)
    if not bare:
        crop = crop if crop.shape[2] == 3 else crop[..., 0]
        for which in look.order:
            crop = JITTER_FAST[which](crop, look.factors[which])
        if look.gray:
            crop = grey_fast(crop)
        if look.sigma:
            crop = blur_fast(crop, look.sigma)
        if look.solarize:
            crop = np.minimum(crop, ~crop)
        if look.flip:
            crop = cv2.flip(crop, 1)  # a reversed view would cost ten times as much when it is copied into the batch
        crop = crop if crop.ndim == 3 else crop[..., None]
    return crop.transpose(2, 0, 1)


def resize_fast(
    pixels: UInt8[np.ndarray, "h w C"], height: int, width: int, box: Box | None = None
) -> UInt8[np.ndarray, "height width C"]:
    """Bicubic resizing of a rectangle of 8-bit pixels, antialiased when it shrinks; Pillow's but for rounding."""
    image = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)  # recognised as channels-last: the fast kernel
    if box is not None:
        image = image[:, :, box.top : box.top + box.height, box.left : box.left + box.width]
    resized: Tensor = torch.ops.aten._upsample_bicubic2d_aa(image, [height, width], False, None, None)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def resized(photo: Photo, height: int, width: int) -> Image.Image:
    """A whole photograph at another size, of mode "L" or "RGB"; decoded at reduced size where that is enough."""
    pixels = photo.pixels(reduction_for(photo.size, (height, width), GAP))
    pixels = resize_fast(pixels, height, width) if pixels.shape[:2] != (height, width) else pixels
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])


def brightness_fast(pixels: Pixels, factor: float) -> Pixels:
    """Blend with black."""
    import cv2

    return cv2.addWeighted(pixels, factor, pixels, 0.0, _TRUNCATE)


def contrast_fast(pixels: Pixels, factor: float) -> Pixels:
    """Blend with the mean grey."""
    import cv2

    mean = int(cv2.mean(_grey(pixels))[0] + 0.5)
    return cv2.addWeighted(pixels, factor, pixels, 0.0, mean * (1 - factor) + _TRUNCATE)


def saturation_fast(pixels: Pixels, factor: float) -> Pixels:
    """Blend with the pixel's own grey; grey images stay as they are."""
    import cv2

    if pixels.ndim == 2:
        return pixels
    blend = np.empty((3, 4))
    blend[:, :3] = np.eye(3) * factor + (1 - factor) * np.array(_LUMA)
    blend[:, 3] = _TRUNCATE
    return cv2.transform(pixels, blend)


def hue_fast(pixels: Pixels, shift: float) -> Pixels:
    """Turn the hue by a share of the circle, in steps of 1/255 as Pillow does; grey images stay as they are."""
    import cv2

    steps = int(shift * 255)
    if pixels.ndim == 2 or not steps:
        return pixels
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    height, width, _ = hsv.shape
    turn = np.zeros(3 * width, dtype=np.uint8)
    turn[::3] = round(steps / 255 * 256) % 256  # a circle has 256 steps here, so the sum wraps round
    hsv = (hsv.reshape(height, 3 * width) + turn).reshape(hsv.shape)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def grey_fast(pixels: Pixels) -> Pixels:
    """The luma in each channel."""
    import cv2

    return pixels if pixels.ndim == 2 else cv2.cvtColor(_grey(pixels), cv2.COLOR_GRAY2RGB)


def blur_fast(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian blur with mirrored edges; taps that do not matter are left out."""
    import cv2

    kernel = gaussian_kernel(sigma)
    middle = BLUR_KERNEL // 2
    reach = max(int(np.count_nonzero(kernel[middle:] > _NEGLIGIBLE)) - 1, 0)
    if not reach:
        return pixels
    kernel = kernel[middle - reach : middle + reach + 1]
    kernel = kernel / kernel.sum()
    return cv2.sepFilter2D(pixels, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)


def _grey(pixels: Pixels) -> UInt8[np.ndarray, "h w"]:
    import cv2

    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


JITTER_FAST: tuple[Callable[[Pixels, float], Pixels], ...] = (
    brightness_fast,
    contrast_fast,
    saturation_fast,
    hue_fast,
)
