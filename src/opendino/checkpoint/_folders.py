# SPDX-License-Identifier: Apache-2.0
"""Folders that exist whole or not at all, and the hash of a file."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into, which takes the place of `folder` when the block ends without an error.

    A folder of that name is kept until the new one is on the disk. Between the two renames, for microseconds, neither
    stands there; `settle` mends what a kill leaves at that point.
    """
    partial, previous = _partial(folder), _previous(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    settle(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
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


def settle(folder: Path) -> None:
    """Put the previous folder back if a killed process left none, or remove it if the new one stands."""
    previous = _previous(folder)
    if not previous.exists():
        return
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        previous.rename(folder)


def to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")
