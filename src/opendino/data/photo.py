# SPDX-License-Identifier: Apache-2.0
"""An 8-bit photograph for the fast way: opened for its size, decoded when it is known how small it may be.

A JPEG can be decoded at a half, a quarter or an eighth of its size at a fraction of the cost: the decoder leaves out
the high frequencies of each block. `Photo.pixels` does that with simplejpeg; without reduction its pixels are Pillow's.
Decisions on orientation, grey and colour are those of `decode.py`. Read `fast.py` next.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from opendino.data.decode import decode, orientation_of

REDUCTIONS = (8, 4, 2)
_JPEG = ("JPEG", "MPO")  # MPO is a JPEG with further pictures behind it
_PLAIN = ("RGB", "L")

# What Pillow's `exif_transpose` does to the pixels, by the EXIF orientation.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}


class Photo:
    """A photograph of 8 bits that has not been decoded yet.

    Attributes:
        size: height and width as a person sees it, pixels; of the whole, whatever `pixels` is reduced by.
        channels: 1 or 3, of what `pixels` returns.
    """

    def __init__(self, data: bytes, image: Image.Image, channels: int, turn: int, name: str) -> None:
        self._data, self._image, self._name = data, image, name
        self.channels, self._turn = channels, turn if turn in _TURNS else 1
        self.size = (image.width, image.height) if self._turn >= 5 else (image.height, image.width)

    def pixels(self, reduction: int = 1) -> UInt8[np.ndarray, "h w C"]:
        """Decode.

        Args:
            reduction: 1, 2, 4 or 8; sides are divided by it and rounded up. Only JPEG files are reduced.

        Raises:
            DataError: the file is damaged.
        """
        found = self._jpeg(reduction) if self._image.format in _JPEG else None
        if found is None:  # another format, or a damaged file: what Pillow makes of it, or says of it
            found = np.array(decode(self._data, self.channels, orient=False, name=self._name))
            found = found[..., None] if found.ndim == 2 else found
        return np.ascontiguousarray(found if self._turn == 1 else _TURNS[self._turn](found))

    def _jpeg(self, reduction: int) -> UInt8[np.ndarray, "h w C"] | None:
        import cv2
        import simplejpeg

        grey = self._image.mode == "L"
        height, width = -(-self._image.height // reduction), -(-self._image.width // reduction)
        least = (height, width) if reduction > 1 else (0, 0)
        try:
            pixels = simplejpeg.decode_jpeg(
                self._data, "GRAY" if grey else "RGB", min_height=least[0], min_width=least[1]
            )
        except ValueError:
            return None
        if pixels.shape[2] == self.channels:
            return pixels
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB) if grey else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]


def open_photo(source: bytes | Path, channels: int, *, orient: bool = True, name: str = "") -> Photo | None:
    """Open one image, or say that it is none for the fast way.

    Args:
        source: the encoded bytes, or a path to them.
        channels: of the pixels.
        orient: whether the EXIF orientation is applied.
        name: what error messages call it.

    Returns:
        None for any other number of channels than 1 and 3, for TIFF, CMYK, palettes, transparency and more than 8 bits,
        and for what cannot be opened: `decode` takes these, or says what is wrong.
    """
    if channels not in (1, 3):
        return None
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        image = Image.open(BytesIO(data))
    except Exception:  # whatever it is, `decode` meets it again and says so
        return None
    if image.mode not in _PLAIN or image.format == "TIFF" or "transparency" in image.info:
        return None
    return Photo(data, image, channels, orientation_of(image) if orient else 1, name or f"image of {len(data)} bytes")


def reduction_for(sides: tuple[int, int], wanted: tuple[int, int], gap: float) -> int:
    """The largest reduction that leaves every side `gap` times as long as it is wanted, or 1."""
    room = min(side / (gap * want) for side, want in zip(sides, wanted, strict=True))
    return next((reduction for reduction in REDUCTIONS if reduction <= room), 1)
