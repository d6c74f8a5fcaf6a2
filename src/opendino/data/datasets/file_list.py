# SPDX-License-Identifier: Apache-2.0
"""A text file with one path a line, relative to the folder of the list or absolute; blank lines are passed over."""

from pathlib import Path

from opendino.data.datasets._base import DEFAULT, DecodeOptions, ImageDataset
from opendino.data.datasets._paths import PathTable, shown
from opendino.errors import DataError

_TRIED = 20


class ListedFiles(ImageDataset):
    """Images that lie in files of their own, named by a table of paths.

    Attributes:
        _folder: that relative paths start from.
        _paths: relative or absolute.
    """

    _folder: Path
    _paths: PathTable

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> Path:
        """Path of one image."""
        return self._folder / self._paths[index]

    def identify(self, index: int) -> str:
        """Path of one image as it is opened."""
        return shown(str(self.read(index)))

    def _require_files(self) -> None:
        """Check that at least one of the first files exists: single ones may be missing, not all.

        Raises:
            DataError: none exists.
        """
        paths = [self.read(index) for index in range(min(_TRIED, len(self)))]
        if not any(_there(path) for path in paths):
            raise DataError(
                f"{self.name}: none of its first {len(paths)} files exists, such as {paths[0]}; paths are relative to "
                "the folder of the list"
            )


class FileListDataset(ListedFiles):
    """Images named by a list, in its order.

    Args:
        source: the list, UTF-8.
        options: how images are decoded.

    Raises:
        DataError: it names nothing, or none of the files it names first exists.
    """

    def __init__(self, source: Path, options: DecodeOptions = DEFAULT) -> None:
        self.name, self.options, self.classes = str(source), options, []
        self._folder = source.parent
        self._paths = _split_lines(source)
        if not len(self._paths):
            raise DataError(f"{source}: the list is empty; write one path a line")
        self._require_files()


def _there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name that the disk takes
        return False


def _split_lines(source: Path) -> PathTable:
    """The lines of a file as a table that keeps the file's own bytes."""
    text = source.read_bytes()
    if text.startswith(b"\xef\xbb\xbf"):
        text = text[3:]
    lines = (line.strip() for line in text.split(b"\n"))
    return PathTable.collect(line for line in lines if line)
