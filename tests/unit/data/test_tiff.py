# SPDX-License-Identifier: Apache-2.0
import struct

import numpy as np
import pytest

from opendino.data.tiff import is_tiff, read_tiff, samples_of
from opendino.errors import DataError

NAMES = [
    "plain", "strips", "big_endian", "bigtiff", "deflate", "deflate_big_endian", "lzw", "packbits", "tiles", "planes",
    "planes_tiles", "float", "float_predictor", "double", "signed", "thirteen",
]  # fmt: skip


def test_every_case_is_tested(tiff_oracle):
    assert list(tiff_oracle.CASES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_layouts_written_by_another_program(tiff_oracle, name):
    with np.load(tiff_oracle.STORED) as stored:
        data = stored[name].tobytes()
    dtype, options = tiff_oracle.CASES[name]
    expected = tiff_oracle.array(dtype, options.get("shape", (19, 23, 5)))
    assert is_tiff(data)
    assert samples_of(data) == expected.shape[2]
    pixels = read_tiff(data)
    assert pixels.dtype.newbyteorder("=") == expected.dtype
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("name", ["strips", "deflate", "tiles", "planes"])
def test_a_truncated_file_is_an_error(tiff_oracle, name):
    with np.load(tiff_oracle.STORED) as stored:
        data = stored[name].tobytes()
    with pytest.raises((DataError, OSError, SyntaxError)):
        read_tiff(data[: len(data) // 2] if name != "strips" else data[:-300])


def test_a_picture_too_large_to_be_true_is_refused(tiff_oracle):
    with np.load(tiff_oracle.STORED) as stored:
        data = bytearray(stored["plain"].tobytes())
    width = next(place for place in range(8, len(data)) if data[place : place + 2] == b"\0\1" and data[place + 8] == 23)
    data[width + 8 : width + 12] = (2**31 - 1).to_bytes(4, "little")
    with pytest.raises(DataError, match="at most"):
        read_tiff(bytes(data))


def test_a_few_bytes_do_not_stand_for_billions_of_blocks():
    """Tiles of one pixel in a picture of 65,535 by 65,535; two blocks are there."""
    entries = [
        (256, 65_535),
        (257, 65_535),
        (258, 8),
        (259, 1),
        (262, 1),
        (277, 1),
        (322, 1),
        (323, 1),
        (324, 8),
        (325, 4),
    ]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    data = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)
    with pytest.raises(DataError, match="1 blocks; 4294836225 were wanted"):
        read_tiff(data)
