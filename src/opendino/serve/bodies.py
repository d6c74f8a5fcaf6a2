# SPDX-License-Identifier: Apache-2.0
"""What comes in: one image as the body, or several as multipart; every limit is checked before memory is spent."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NamedTuple

from fastapi import HTTPException, Request  # pyrefly: ignore[missing-import]  an extra
from PIL import Image
from starlette.formparsers import MultiPartException, MultiPartParser  # pyrefly: ignore[missing-import]

from opendino.data.decode import Decoded, decode
from opendino.data.photo import Photo, open_photo
from opendino.errors import ConfigError, DataError


@dataclass(frozen=True)
class LimitConfig:
    """What a request may ask for.

    Attributes:
        bytes: of a request's body.
        pixels: of one image.
        images: in one request.
        seconds: until an answer is given up.
    """

    bytes: int = 32 << 20
    pixels: int = 50_000_000
    images: int = 32
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if min(self.bytes, self.pixels, self.images) < 1 or self.seconds <= 0:
            raise ConfigError("limits: give 1 or more of each, and more than 0 seconds")


class Opening(NamedTuple):
    """How images are decoded; see `opendino.data.decode` and `opendino.data.fast`."""

    decoder: Literal["pillow", "fast"] = "pillow"
    orient: bool = True
    value_range: tuple[float, float] | None = None


PILLOW = Opening()


async def images_of(request: Request, limits: LimitConfig) -> list[bytes]:
    """The encoded images of a request.

    Raises:
        HTTPException: 400 there is none, or the form is broken; 413 too much.
    """
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.bytes:
        raise HTTPException(413, f"a body of more than {limits.bytes} bytes; send fewer or smaller images")
    if not request.headers.get("content-type", "").startswith("multipart/"):
        found = [b"".join([chunk async for chunk in _limited(request, limits)])]
    else:
        found = await _parts(request, limits)
    if not any(found):
        raise HTTPException(400, "no image came; send one as the body, or several as multipart files")
    if len(found) > limits.images:
        raise HTTPException(413, f"{len(found)} images came; at most {limits.images} are taken at once")
    return found


async def _parts(request: Request, limits: LimitConfig) -> list[bytes]:
    parser = MultiPartParser(request.headers, _limited(request, limits), max_files=limits.images, max_fields=16)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        # The parser has a limit of its own on files.
        raise HTTPException(413 if "Too many" in error.message else 400, f"broken form: {error.message}") from None
    except (KeyError, ValueError, AssertionError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"broken form: {type(error).__name__}") from None
    try:
        return [await value.read() for _, value in form.multi_items() if not isinstance(value, str)]
    finally:
        await form.close()


async def _limited(request: Request, limits: LimitConfig) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.bytes:
            raise HTTPException(413, f"a body of more than {limits.bytes} bytes; send fewer or smaller images")
        yield chunk


def open_image(data: bytes, channels: int, limits: LimitConfig, how: Opening = PILLOW) -> Decoded | Photo:
    """One image, its size looked at before its pixels are.

    Returns:
        With the fast decoder a photograph that is decoded when it is prepared; a damaged one is a `DataError` then.

    Raises:
        HTTPException: 413 too many pixels; 422 no image, or a broken one.
    """
    try:
        with Image.open(BytesIO(data)) as header:
            pixels = header.width * header.height
    except Image.DecompressionBombError:
        raise HTTPException(413, f"an image of more than {limits.pixels} pixels; make it smaller") from None
    except Exception:  # broken headers raise nearly anything
        # Nor are arrays taken: what they say of their size is believed before a byte is read.
        raise HTTPException(422, "no image format that Pillow can read") from None
    if pixels > limits.pixels:
        raise HTTPException(413, f"an image of {pixels} pixels; at most {limits.pixels} are taken")
    photo = open_photo(data, channels, orient=how.orient, name="image") if how.decoder == "fast" else None
    if photo is not None:
        return photo
    try:
        return decode(data, channels, orient=how.orient, value_range=how.value_range, name="image")
    except DataError as error:
        raise HTTPException(422, str(error)) from None
