# SPDX-License-Identifier: Apache-2.0
"""Files that a data set reads pieces of: opened when first asked for, a bounded number of them, closed with it."""

import contextlib
import os
from pathlib import Path

_MOST_OPEN = 128
"""That one process keeps open for one data set; systems often allow 1024 files."""


class _Opened:
    """An open file, closed when it is neither kept nor being read: several threads share it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.number)


class Handles:
    """Open files by path, the last used kept; for any number of threads; they do not travel to another process."""

    def __init__(self) -> None:
        self._opened: dict[Path, _Opened] = {}

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """A piece of a file, whole.

        Raises:
            OSError: the file cannot be opened or read.
            ValueError: it ends before the piece does, as far as it is one.
        """
        handle = self._handle(path)
        # Compared first: as many bytes as are asked for are set aside before one is read.
        there = os.fstat(handle.number).st_size - offset if offset >= 0 else 0
        found = os.pread(handle.number, length, offset) if 0 <= length <= there else b""
        if len(found) != length:
            raise ValueError(f"{max(min(there, length), 0)} of {length} bytes are there")
        return found

    def __getstate__(self) -> dict[str, object]:
        return {"_opened": {}}

    def _handle(self, path: Path) -> _Opened:
        # Each line by itself is safe among threads; what another one pushes out stays open for those who read it.
        handle = self._opened.pop(path, None) or _Opened(os.open(path, os.O_RDONLY))
        self._opened[path] = handle  # the last used at the end
        for oldest in list(self._opened)[:-_MOST_OPEN]:
            self._opened.pop(oldest, None)
        return handle
