# SPDX-License-Identifier: Apache-2.0
"""TIFF pages of any number of samples, which Pillow reads only up to four; `decode.py` turns to this for the others.

Read: strips and tiles, samples side by side or in planes, 8 to 64 bits of integers or floats, both byte orders,
BigTIFF, predictors, and every lossless compression that Pillow's libtiff has.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from opendino.errors import DataError

MAX_BYTES = 4 << 30
"""Decoded bytes above which a page is taken for a decompression bomb."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION = 256, 257, 258, 259
_STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES = 273, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _FORMAT = 284, 317, 322, 323, 324, 325, 339
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_NONE = 1


@dataclass(frozen=True)
class _Page:
    """The layout of a page: its blocks are strips or tiles, of all samples or of one."""

    height: int
    width: int
    samples: int
    dtype: np.dtype
    planes: int
    block: tuple[int, int]
    tiled: bool
    compression: int
    predictor: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]


def is_tiff(data: bytes) -> bool:
    """Whether these bytes begin as a TIFF or BigTIFF file."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def samples_of(data: bytes) -> int:
    """Samples of each pixel of the first page."""
    return _one(_tags(data), _SAMPLES, 1)


def read_tiff(data: bytes) -> Shaped[np.ndarray, "H W C"]:
    """All samples of the first page of a TIFF file, in the type they are stored in.

    Raises:
        DataError: the file is damaged, or its layout is not read.

    Source: TIFF 6.0 (Adobe 1992), sections 2, 13, 14 and 15; technical note 3 for floating point predictors.
    """
    page = _page(data)
    inside = page.samples // page.planes
    blocks = page.planes * -(-page.height // page.block[0]) * -(-page.width // page.block[1])
    if min(len(page.offsets), len(page.counts)) < blocks:  # before memory is spent: a few bytes may say billions
        raise DataError(f"TIFF of {len(page.offsets)} blocks; {blocks} were wanted")
    out = np.zeros((page.height, page.width, page.samples), dtype=page.dtype)
    for (plane, top, left), offset, count in zip(_places(page), page.offsets, page.counts, strict=False):
        rows = page.block[0] if page.tiled else min(page.block[0], page.height - top)
        packed = data[offset : offset + count]
        if len(packed) < count:
            raise DataError("truncated TIFF: a block of pixels lies beyond the end of the file")
        block = _block(packed, page, rows, inside)
        target = out[top : top + rows, left : left + page.block[1], plane * inside : (plane + 1) * inside]
        target[...] = block[: target.shape[0], : target.shape[1]]
    return out


def _page(data: bytes) -> _Page:
    tags = _tags(data)
    width, height, samples = (_one(tags, tag, default) for tag, default in ((_WIDTH, 0), (_HEIGHT, 0), (_SAMPLES, 1)))
    bits = set(_all(tags, _BITS, (1,)))
    kinds = set(_all(tags, _FORMAT, (1,)))
    if len(bits) != 1 or len(kinds) != 1 or bits - {8, 16, 32, 64} or kinds - set(_KINDS):
        raise DataError(f"TIFF of {sorted(bits)} bits in formats {sorted(kinds)}; 8, 16, 32 or 64 bits are read")
    dtype = np.dtype(f"{'<' if data[:2] == b'II' else '>'}{_KINDS[kinds.pop()]}{bits.pop() // 8}")
    if min(width, height, samples) < 1 or width * height * samples * dtype.itemsize > MAX_BYTES:
        raise DataError(f"TIFF of {width} x {height} pixels of {samples} samples; at most {MAX_BYTES} bytes are read")
    tiled = _TILES in tags
    block = (_one(tags, _TILE_HEIGHT, 0), _one(tags, _TILE_WIDTH, 0)) if tiled else (_one(tags, _ROWS, height), width)
    if min(block) < 1:
        raise DataError(f"TIFF with blocks of {block[1]} x {block[0]} pixels")
    return _Page(
        height=height,
        width=width,
        samples=samples,
        dtype=dtype,
        planes=samples if _one(tags, _PLANAR, 1) == 2 else 1,
        block=block if tiled else (min(block[0], height), width),
        tiled=tiled,
        compression=_one(tags, _COMPRESSION, _NONE),
        predictor=_one(tags, _PREDICTOR, 1),
        offsets=_all(tags, _TILES if tiled else _STRIPS, ()),
        counts=_all(tags, _TILE_BYTES if tiled else _STRIP_BYTES, ()),
    )


def _tags(data: bytes) -> ImageFileDirectory_v2:
    tags = ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
    stream = BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)
    return tags


def _all(tags: ImageFileDirectory_v2, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = tags.get(tag, default)
    return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)


def _one(tags: ImageFileDirectory_v2, tag: int, default: int) -> int:
    return _all(tags, tag, (default,))[0]


def _places(page: _Page) -> Iterator[tuple[int, int, int]]:
    """Plane, top and left of every block, in the order of the file."""
    high, wide = page.block
    for plane in range(page.planes):
        for top in range(0, page.height, high):
            for left in range(0, page.width, wide):
                yield plane, top, left


def _block(packed: bytes, page: _Page, rows: int, samples: int) -> Shaped[np.ndarray, "h w s"]:
    width, item = page.block[1], page.dtype.itemsize
    line = width * samples * item
    raw = packed if page.compression == _NONE else _unpack(packed, page.compression, line, rows)
    if len(raw) < rows * line:
        raise DataError(f"truncated TIFF: {len(raw)} bytes in a block of {rows * line}")
    octets = np.frombuffer(raw, dtype=np.uint8, count=rows * line).reshape(rows, line)
    if page.predictor == 3:
        return _undo_float_predictor(octets, samples, item).reshape(rows, width, samples)
    values = octets.view(page.dtype).reshape(rows, width, samples)
    if page.predictor == 2:
        return np.add.accumulate(values, axis=1, dtype=page.dtype.newbyteorder("="))
    return values


def _undo_float_predictor(octets: UInt8[np.ndarray, "rows line"], samples: int, item: int) -> Shaped[np.ndarray, "..."]:
    """Differences of bytes to bytes, and planes of bytes, the highest first, to numbers."""
    rows = len(octets)
    summed = np.add.accumulate(octets.reshape(rows, -1, samples), axis=1, dtype=np.uint8)
    numbers = np.ascontiguousarray(summed.reshape(rows, item, -1).transpose(0, 2, 1))
    return numbers.view(f">f{item}")


def _unpack(packed: bytes, compression: int, width: int, height: int) -> bytes:
    """The bytes of a compressed block: as the pixels of a grey picture, which Pillow's libtiff unpacks."""
    entries = [
        (_WIDTH, width),
        (_HEIGHT, height),
        (_BITS, 8),
        (_COMPRESSION, compression),
        (262, 1),  # black is zero
        (_STRIPS, 8),
        (_SAMPLES, 1),
        (_ROWS, height),
        (_STRIP_BYTES, len(packed)),
    ]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    start = 8 + len(packed) + len(packed) % 2
    head = struct.pack("<2sHI", b"II", 42, start)
    body = packed + b"\0" * (len(packed) % 2)
    file = head + body + struct.pack("<H", len(entries)) + directory + struct.pack("<I", 0)
    with Image.open(BytesIO(file)) as image:
        return image.tobytes()
