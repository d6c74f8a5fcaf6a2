# SPDX-License-Identifier: Apache-2.0
"""A folder of images, nested to any depth; its first-level sub-folders may be classes.

Labels exist when every image lies in a first-level sub-folder and there are at least two of those with images; they
are numbered in the order of their names. Sub-folders that are all named as splits (train, val, test ...) are no
classes: open one of them. Hidden files and folders are passed over, symbolic links are followed.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path

import numpy as np

from opendino.data.datasets._base import DEFAULT, DecodeOptions, ImageDataset
from opendino.data.datasets._paths import PathTable, shown
from opendino.errors import DataError

_TRAINING = {"train", "training"}
_HELD_OUT = {"val", "valid", "validation", "dev", "test", "testing"}
_log = logging.getLogger(__name__)
# Not pictures, or read only with the help of another program.
_NOT_IMAGES = {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf"}


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, lower case, of the files taken as images: all that Pillow opens, and `.npy`."""
    from PIL import Image

    known = {suffix for suffix, format in Image.registered_extensions().items() if format in Image.OPEN}
    return frozenset(known - _NOT_IMAGES | {".npy"})


class FolderDataset(ImageDataset):
    """Images below a folder: the files of each folder in the order of their names, then its sub-folders.

    Args:
        root: the folder.
        options: how images are decoded.

    Raises:
        DataError: there is no image below it.
    """

    def __init__(self, root: Path, options: DecodeOptions = DEFAULT) -> None:
        self.root, self.name, self.options, self.classes = root, str(root), options, []
        tops: list[int] = []
        names: dict[str, int] = {}
        other: Counter[str] = Counter()

        def walk() -> Iterator[bytes]:
            for relative in scan(str(root), other):
                top, slash, _ = relative.partition("/")
                tops.append(names.setdefault(top, len(names)) if slash else -1)
                yield os.fsencode(relative)

        self._paths = PathTable.collect(walk())
        if not len(self._paths):
            raise DataError(_nothing_found(root, other))
        self._set_labels(np.array(tops, dtype=np.int64), list(names))

    def _set_labels(self, tops: np.ndarray, names: list[str]) -> None:
        warn_of_parts(self.name, names)
        if tops.min() < 0 or len(names) < 2:
            return
        if {name.lower() for name in names} <= _TRAINING | _HELD_OUT:
            _log.info("%s: %s are parts, not classes; open one of them for labels", self.name, ", ".join(sorted(names)))
            return
        order = sorted(names)
        self.classes = [shown(name) for name in order]
        rank = {name: place for place, name in enumerate(order)}
        self.targets = np.array([rank[name] for name in names], dtype=np.int64)[tops]

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> Path:
        """Path of one image."""
        return self.root / self._paths[index]

    def identify(self, index: int) -> str:
        """Path of one image, with the folder it was found from."""
        return shown(f"{self.name}/{self._paths[index]}")


def warn_of_parts(source: str, names: Iterable[str], ending: str = "") -> None:
    """Say that held-out images are among those to be used, where the names of parts tell.

    Args:
        source: what was opened.
        names: of its parts, if they are parts.
        ending: behind the name of a part, to name that part alone.
    """
    training = sorted(name for name in names if name.lower() in _TRAINING)
    held_out = sorted(name for name in names if name.lower() in _HELD_OUT)
    if training and held_out:
        _log.warning(
            "%s holds %s beside %s, and the images of all of them are used; give %s to leave held-out images out",
            source,
            " and ".join(held_out),
            training[0],
            f"{source.rstrip('/')}/{training[0]}{ending}",
        )


def scan(root: str, other: Counter[str] | None = None) -> Iterator[str]:
    """Paths of all images below a folder, relative to it with forward slashes, each folder in order of its names.

    Args:
        root: the folder.
        other: counts the suffixes of files that are no images.
    """
    suffixes = image_suffixes()
    stack: list[tuple[str, frozenset[str]]] = [("", frozenset({os.path.realpath(root)}))]
    while stack:
        prefix, seen = stack.pop()
        folders = []
        listing = _list(f"{root}/{prefix}")
        for entry in listing:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry)
            elif (suffix := _suffix(entry.name)) in suffixes:
                yield prefix + entry.name
            elif other is not None:
                other[suffix] += 1
        for entry in reversed(folders):
            below = seen
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                if real in seen:  # a link to a folder above: it would never end
                    continue
                below = seen | {real}
            stack.append((prefix + entry.name + "/", below))


def _list(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=attrgetter("name"))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); make it readable or move it away") from error


def _suffix(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def _nothing_found(root: Path, other: Counter[str]) -> str:
    if not other:
        return f"{root}: the folder is empty; put images into it or name another"
    found = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in other.most_common(3))
    hint = "name the folder that holds the Parquet files" if ".parquet" in other else "put images into it"
    return f"{root}: no image among its files ({found}); {hint}, or name another folder"
