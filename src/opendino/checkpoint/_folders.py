# SPDX-License-Identifier: Apache-2.0
"""Folders that exist whole or not at all, and the hash of a file."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from opendino.errors import CheckpointError
from opendino.files import to_disk

_T = TypeVar("_T")


@contextlib.contextmanager
def whole(folder: Path, made: bool = False) -> Iterator[Path]:
    """A hidden folder to write into, which takes the place of `folder` when the block ends without an error.

    A folder of that name is kept until the new one is on the disk. Between the two renames, for microseconds, neither
    stands there: readers take the earlier one (`standing`), and the next writer mends what a kill leaves (`settle`).

    Args:
        folder: that is wanted.
        made: `make_partial` has been called already, for others to write there too.
    """
    partial, previous = partial_of(folder), _previous(folder)
    if not made:
        make_partial(folder)
    try:
        yield partial
        for path in (*partial.iterdir(), partial):
            to_disk(path)
        if folder.exists():
            folder.rename(previous)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        settle(folder)
        raise
    to_disk(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def make_partial(folder: Path) -> None:
    """Make the empty hidden folder that `whole` writes into."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    settle(folder)
    shutil.rmtree(partial_of(folder), ignore_errors=True)
    partial_of(folder).mkdir()


def settle(folder: Path) -> None:
    """Put the previous folder back if a killed process left none, or remove it if the new one stands.

    For the one writer alone: in a reader's hands it would pull the folder from under a writer between its two renames.
    """
    previous = _previous(folder)
    if not previous.exists():
        return
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        previous.rename(folder)


def standing(path: Path) -> Path:
    """Where a reader finds a folder, or a file in one, that a writer may be replacing; changes nothing."""
    if path.exists():
        return path
    places = (_previous(path), _previous(path.parent) / path.name) if path.name and path.parent.name else ()
    # Asked again at the end: the new one may have come while the earlier one was looked for.
    return next((place for place in places if not path.exists() and place.exists()), path)


def reading(read: Callable[[], _T], *folders: Path) -> _T:
    """What `read` gives; read once more where it fails because one of the folders was replaced meanwhile."""
    before = [_identity(folder) for folder in folders]
    try:
        return read()
    except (CheckpointError, OSError):
        if [_identity(folder) for folder in folders] == before:
            raise
    return read()


def _identity(folder: Path) -> tuple[Path, int, int] | None:
    place = standing(folder)
    try:
        found = place.stat()
    except OSError:
        return None
    return place, found.st_ino, found.st_mtime_ns


def sha256(path: Path) -> str:
    """Hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_of(folder: Path) -> Path:
    """The hidden folder that `whole` writes into."""
    return folder.with_name(f".{folder.name}.partial")


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")
