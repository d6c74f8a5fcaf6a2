# SPDX-License-Identifier: Apache-2.0
"""Bytes or a file to an image of a wanted number of channels; read `augment.py` next.

Two kinds of image leave this file:

- 8-bit photographs asked for with 1 or 3 channels are Pillow images of mode "L" or "RGB";
- all else (16-bit, float, and any other number of channels) is a float32 array [H, W, C] with values 0..1.

Decisions, the same for every reader of the package:

- **EXIF orientation** is applied: the model sees what a person sees. (The official reader ignores it.)
- **Transparency** is laid over white. (The official reader drops it and shows the colour under it, often black.)
- **Grey for 3 channels** is repeated; **colour for 1 channel** is ITU-R 601 luma; CMYK, YCbCr, LAB, HSV and palettes
  become RGB.
- **Any other number of channels** must be there exactly: as bands, or as the pages of a file of one-band pages. TIFF
  files of many samples are read by `tiff.py`.
- **Animations** (GIF, WebP, PNG) are their first frame.
- **More than 8 bits**: unsigned 16-bit integers are divided by 65,535. Floats must lie in 0..1. For everything else,
  and for 12-bit data in 16-bit files, `value_range` says which two values become 0 and 1; beyond them is clipped.
- **Size**: Pillow's guard against decompression bombs holds (178,956,970 pixels).
"""

import math
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image, ImageOps

from opendino.data.tiff import is_tiff, read_tiff, samples_of
from opendino.errors import DataError

NPY_MAGIC = b"\x93NUMPY"
_ORIENTATION = 0x0112
_HEADS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}

Decoded = Image.Image | Float32[np.ndarray, "H W C"]
"""A Pillow image of mode "L" or "RGB", or float32 [H, W, C] in 0..1."""


def decode(
    source: bytes | Path,
    channels: int = 3,
    *,
    orient: bool = True,
    value_range: tuple[float, float] | None = None,
    name: str | None = None,
) -> Decoded:
    """Read one image of any format that Pillow knows, or a `.npy` array [H, W] or [H, W, C].

    Args:
        source: the encoded bytes, or a path to them.
        channels: channels of the result; 1 and 3 are made from any image, others must be there exactly.
        orient: whether the EXIF orientation is applied.
        value_range: the two values that become 0 and 1 in images of more than 8 bits and in arrays.
        name: what error messages call the image; the path by default.

    Returns:
        A Pillow image of mode "L" or "RGB" that is loaded, or float32 [H, W, C] in 0..1.

    Raises:
        DataError: the image is corrupt, truncated, too large, or has not the wanted channels.

    Differs: the official reader is `Image.open(...).convert("RGB")`; see the decisions at the head of this file.
    """
    name = name or (str(source) if isinstance(source, Path) else f"image of {len(source)} bytes")
    try:
        return _decode(source, channels, orient, value_range)
    except MemoryError:
        raise
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name}: no image format that Pillow can read") from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise DataError(f"{name}: has more than {most:,} pixels, which Pillow refuses; make it smaller") from error
    except FileNotFoundError as error:
        raise DataError(f"{name}: there is no such file") from error
    except (PermissionError, IsADirectoryError) as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from error
    except Exception as error:  # decoders of broken files raise nearly anything: OSError, SyntaxError, struct.error ...
        raise DataError(f"{name}: cannot be decoded ({type(error).__name__}: {error})") from error


def match_channels(image: Decoded, channels: int) -> Decoded:
    """The image with the channels that a network takes: photographs become grey or colour, others must have them.

    Raises:
        DataError: it has another number of channels and is no photograph.
    """
    if isinstance(image, Image.Image) and channels in (1, 3):
        wanted = "RGB" if channels == 3 else "L"
        return image if image.mode == wanted else image.convert(wanted)
    found = len(image.getbands()) if isinstance(image, Image.Image) else image.shape[2]
    if isinstance(image, Image.Image) or found != channels:
        raise DataError(
            f"an image of {found} channels came where {channels} were wanted; open the data set with "
            f"channels={channels}"
        )
    return image


def _decode(source: bytes | Path, channels: int, orient: bool, value_range: tuple[float, float] | None) -> Decoded:
    array = _array_file(source, channels)
    if array is not None:
        return _from_array(array, channels, value_range)
    try:
        image = Image.open(source if isinstance(source, Path) else BytesIO(source))
    except Image.UnidentifiedImageError:
        data = source.read_bytes() if isinstance(source, Path) else source
        if not is_tiff(data):
            raise
        return _from_array(read_tiff(data), channels, value_range)  # such as three channels of floats
    with image:
        return _from_image(image, channels, orient, value_range)


def _array_file(source: bytes | Path, channels: int) -> Shaped[np.ndarray, "..."] | None:
    """Pixels of the files that are not Pillow's: `.npy`, and TIFF of as many samples as wanted channels."""
    if isinstance(source, Path):
        suffix = source.suffix.lower()
        if suffix == ".npy":
            return read_npy(source.read_bytes())
        if channels in (1, 3) or suffix not in (".tif", ".tiff"):
            return None
        source = source.read_bytes()
    if source[:6] == NPY_MAGIC:
        return read_npy(source)
    if channels not in (1, 3) and is_tiff(source) and samples_of(source) == channels:
        return read_tiff(source)
    return None


def read_npy(data: bytes) -> Shaped[np.ndarray, "..."]:
    """The array of a `.npy` file, read-only; its size is compared with what is there before memory is spent.

    Raises:
        DataError: it holds objects, which are never unpickled, or is shorter than it says.
        ValueError: its head is damaged.

    Differs: `numpy.load` takes as much memory as the head asks for.
    """
    stream = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADS:
        raise DataError(f".npy of version {version}; 1.0 and 2.0 are read")
    shape, fortran, dtype = _HEADS[version](stream)
    wanted, there = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if dtype.hasobject:
        raise DataError("an array of Python objects, which are never unpickled here; save one of numbers")
    if not 0 <= wanted <= there:
        raise DataError(f"array {dtype} of shape {shape} takes {wanted} bytes, and {there} are there")
    numbers = np.frombuffer(data, dtype, math.prod(shape), stream.tell())
    return numbers.reshape(shape, order="F" if fortran else "C")


def _from_image(image: Image.Image, channels: int, orient: bool, value_range: tuple[float, float] | None) -> Decoded:
    if channels not in (1, 3):
        return _bands(image, channels, orient, value_range)
    if orient:
        image = _upright(image)
    if image.mode in _DEEP_MODES:
        return _fit(_scale(np.asarray(image)[..., None], value_range), channels)
    wanted = "RGB" if channels == 3 else "L"
    if image.mode == wanted and "transparency" not in image.info:
        image.load()
        return image
    return _opaque(image).convert(wanted)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    return image if orientation_of(image) == 1 else ImageOps.exif_transpose(image)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 for upright; a broken EXIF block does not make the pixels unreadable."""
    if image.format == "TIFF" or not ("exif" in image.info or "xmp" in image.info):
        return 1  # Pillow turns TIFF files itself when they are loaded
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the block is decoded by hand-written parsers that raise anything on damage
        return 1


def _opaque(image: Image.Image) -> Image.Image:
    """The same picture without transparency, in a mode that converts to "L" and "RGB"."""
    if image.mode == "LAB":
        from PIL import ImageCms

        flat = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        if flat is None:
            raise DataError("LAB colours cannot be converted to RGB")
        return flat
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    if layer.getchannel("A").getextrema() == (255, 255):
        return layer.convert("RGB")
    canvas = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    canvas.alpha_composite(layer)
    return canvas.convert("RGB")


def _bands(
    image: Image.Image, channels: int, orient: bool, value_range: tuple[float, float] | None
) -> Float32[np.ndarray, "H W C"]:
    """All bands of an image, or all pages of a file of one-band pages, as they are stored."""
    pages = getattr(image, "n_frames", 1)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    bands = len(image.getbands())
    if bands == channels:
        pixels = np.asarray(_upright(image) if orient else image)
        return _scale(pixels[..., None] if pixels.ndim == 2 else pixels, value_range)
    if bands == 1 and pages == channels:
        planes = []
        for page in range(pages):
            image.seek(page)
            planes.append(np.asarray(image))
        return _scale(np.stack(planes, axis=-1), value_range)
    raise DataError(f"has {bands} channels on {pages} pages; {channels} were wanted, set `channels` to what is there")


def _from_array(array: Shaped[np.ndarray, "..."], channels: int, value_range: tuple[float, float] | None) -> Decoded:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(f"array of shape {array.shape}; [H, W] or [H, W, C] was wanted")
    found = array.shape[2]
    if found != channels and not (found == 1 and channels == 3):
        hint = "; the channels must come last" if array.shape[0] == channels else ""
        raise DataError(f"array of shape {array.shape} has {found} channels, {channels} were wanted{hint}")
    if array.dtype == np.uint8 and channels in (1, 3) and value_range is None:
        image = Image.fromarray(array[..., 0] if found == 1 else np.ascontiguousarray(array))
        return image.convert("RGB" if channels == 3 else "L")
    return _fit(_scale(array, value_range), channels)


def _fit(pixels: Float32[np.ndarray, "H W C"], channels: int) -> Float32[np.ndarray, "H W C2"]:
    return pixels if pixels.shape[2] == channels else np.repeat(pixels, channels, axis=2)


def _scale(
    pixels: Shaped[np.ndarray, "H W C"], value_range: tuple[float, float] | None
) -> Float32[np.ndarray, "H W C"]:
    """Values to float32 0..1, by the range given or by the rule of their type."""
    if value_range is not None:
        low, high = value_range
        scaled = (pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)
        if not np.isfinite(scaled).all():
            raise DataError("has values that are not finite")
        return np.clip(scaled, 0, 1, out=scaled)
    if pixels.dtype == bool:
        return pixels.astype(np.float32)
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    low, high = pixels.min(), pixels.max()
    # Pillow gives some 16-bit files as 32-bit integers.
    if _is(pixels, "u", 2) or (_is(pixels, "i", 4) and low >= 0 and high <= 65535):
        return pixels.astype(np.float32) / np.float32(65535)
    if pixels.dtype.kind == "f" and low >= 0 and high <= 1:
        return pixels.astype(np.float32)
    raise DataError(f"{pixels.dtype} values from {low} to {high} are not in 0..1; set `value_range` to their limits")


def _is(pixels: Shaped[np.ndarray, "..."], kind: str, size: int) -> bool:
    """Whether the numbers are of a kind and size, in either byte order."""
    return pixels.dtype.kind == kind and pixels.dtype.itemsize == size
