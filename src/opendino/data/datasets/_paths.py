# SPDX-License-Identifier: Apache-2.0
"""A table of paths as two flat arrays, which forked workers share without copying.

A list of a million `str` would be copied page by page into every worker, as each look at an object changes its
reference count; a look into an array changes nothing.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64, UInt8


class PathTable:
    """Paths by index: all bytes one after the other, and where each ends.

    Args:
        text: bytes of all paths without separators between them.
        offsets: path i is text[offsets[i] : offsets[i + 1]].
    """

    def __init__(self, text: UInt8[np.ndarray, " bytes"], offsets: Int64[np.ndarray, " ends"]) -> None:
        self.text, self.offsets = text, offsets

    @classmethod
    def collect(cls, paths: Iterable[bytes]) -> "PathTable":
        """Build from paths as bytes, without holding them all as objects."""
        text, lengths = bytearray(), [0]
        for path in paths:
            text += path
            lengths.append(len(path))
        return cls(np.frombuffer(bytes(text), dtype=np.uint8), np.cumsum(lengths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.text[self.offsets[index] : self.offsets[index + 1]].tobytes().decode("utf-8", "surrogateescape")


def shown(name: str) -> str:
    """A name as text that every table, log and page takes: what cannot be printed, such as a line's end, is escaped.

    Names on a disk are bytes; those that are no UTF-8 hold surrogates here, which no file of text can.
    """
    if name.isprintable():
        return name
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name)
