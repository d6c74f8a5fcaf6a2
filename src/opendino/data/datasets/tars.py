# SPDX-License-Identifier: Apache-2.0
"""Images inside tar files, as webdataset and img2dataset write them, read one by one at their place.

Any member that ends as an image is one; a `.cls` member of the same name holds its label, everything else is passed
over. Nothing is unpacked and nothing read in a row: the order of a run is a true shuffle of all images of all tars.
"""

import re
from itertools import product
from pathlib import Path

import numpy as np

from opendino.data.datasets._base import DEFAULT, DecodeOptions, ImageDataset
from opendino.data.datasets._columns import check_labels
from opendino.data.datasets._handles import Handles
from opendino.data.datasets._paths import shown
from opendino.data.datasets._tar_index import index_of
from opendino.errors import DataError

_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class TarDataset(ImageDataset):
    """Images of one or more tars, in the order of their names and members.

    Args:
        source: a tar, a folder of tars, a pattern such as `train-*.tar`, or one with braces, `train-{000..127}.tar`.
        options: how images are decoded.
        label_column: "none" for no labels.

    Raises:
        DataError: no tar, one that is none, no image in any of them, or labels for some images only.
    """

    def __init__(self, source: str | Path, options: DecodeOptions = DEFAULT, *, label_column: str = "") -> None:
        self.name, self.options, self.classes = str(source), options, []
        self._files = tars_of(str(source))
        indices = [index_of(file) for file in self._files]
        self._starts = np.cumsum([0, *(len(index.offsets) for index in indices)], dtype=np.int64)
        if not len(self):
            raise DataError(f"{source}: there is no image in {len(self._files)} tars, such as {self._files[0]}")
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._lengths = np.concatenate([index.lengths for index in indices])
        self._names = [index.names for index in indices]
        if label_column != "none":
            self._set_labels(np.concatenate([index.labels for index in indices]))
        self._opened = Handles()

    def _set_labels(self, labels: np.ndarray) -> None:
        missing = int((labels < 0).sum())
        if missing == len(labels):
            return
        if missing:
            raise DataError(
                f"{self.name}: {missing} of {len(labels)} images have no .cls member beside them; add them or set "
                "label_column=none"
            )
        try:
            check_labels(labels)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None
        self.targets, self.classes = labels, [str(label) for label in range(int(labels.max()) + 1)]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> bytes:
        """Bytes of one image.

        Raises:
            DataError: the tar is gone, or shorter than it was.
        """
        number, offset, length = self._place(index)
        try:
            return self._opened.read(self._files[number], offset, length)
        except OSError as error:
            raise DataError(f"{self.identify(index)}: cannot be read ({error.strerror}); check the tar") from None
        except ValueError as error:
            raise DataError(f"{self.identify(index)}: {error}; the tar was cut short, copy it anew") from None

    def identify(self, index: int) -> str:
        """Tar and member of one image."""
        number, _, _ = self._place(index)
        return shown(f"{self._files[number]}/{self._names[number][index - int(self._starts[number])]}")

    def _place(self, index: int) -> tuple[int, int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, int(self._offsets[index]), int(self._lengths[index])


def tars_of(source: str) -> list[Path]:
    """Tar files that a source names, each once, in the order of their names; braces in their own order.

    Raises:
        DataError: one that braces name is missing, or none is there.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    elif path.exists() or not _BRACES.search(source):
        found = [path] if path.exists() else sorted(path.parent.glob(path.name))
    else:
        found = [Path(name) for name in opened_braces(source)]
        missing = [file for file in found if not file.is_file()]
        if missing:
            raise DataError(
                f"{source}: {len(missing)} of {len(found)} files are missing, such as {missing[0]}; mend the pattern"
            )
    if not found:
        raise DataError(f"{source}: no tar fits this pattern in {path.parent.resolve()}; name another")
    return found


def opened_braces(pattern: str) -> list[str]:
    """Every name that a pattern stands for: `{000..012}` numbers with as many digits, `{a,b}` alternatives."""
    parts = _BRACES.split(pattern)
    choices = [[part] if place % 2 == 0 else _alternatives(part) for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _alternatives(inside: str) -> list[str]:
    found = _RANGE.fullmatch(inside)
    if found is None:
        return inside.split(",")
    first, last = found.groups()
    step = 1 if int(first) <= int(last) else -1
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + step, step)]
