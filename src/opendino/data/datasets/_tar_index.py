# SPDX-License-Identifier: Apache-2.0
"""Where the images of a tar lie: found once by walking its headers, then kept; `tars.py` reads by it.

An index is a small `.npz` beside the tar, or under `OPENDINO_CACHE` (by default `~/.cache/opendino`) where the tar's
folder cannot be written. It belongs to the very size and time of the tar, and is made anew when those change, or when a
few headers that are read again are not where it says: another tar may have been put there with both alike.
"""

import contextlib
import hashlib
import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from opendino.data.datasets._paths import PathTable
from opendino.data.datasets.folder import image_suffixes
from opendino.errors import DataError
from opendino.files import write_whole

SUFFIX = ".index.npz"
LAYOUT = 1
"""Raised when what an index holds changes: older ones are made anew then."""

NO_LABEL = -1
_LABEL = "cls"
_LONGEST_LABEL = 64  # bytes of a member that holds a class number
_CHECKED = 4  # headers of a kept index that are read again
_log = logging.getLogger(__name__)


class TarIndex(NamedTuple):
    """Images of one tar, in the order of its members.

    Attributes:
        offsets: first byte of each image in the tar.
        lengths: bytes of each image.
        labels: what the `.cls` member of the same name says, `NO_LABEL` without one.
        names: of the members.
    """

    offsets: Int64[np.ndarray, " n"]
    lengths: Int64[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    names: PathTable


def index_of(path: Path) -> TarIndex:
    """The index of a tar: the kept one if it is still true, else a new one, which is kept.

    Raises:
        DataError: it is no plain tar, or cannot be read.
    """
    try:
        stamp = np.array([LAYOUT, path.stat().st_size, path.stat().st_mtime_ns])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    places = (path.with_name(f".{path.name}{SUFFIX}"), _cached(path))
    for place in places:
        found = _read(place, stamp)
        if found is not None and _agrees(path, found):
            return found
    index = walk(path)
    for place in places:
        with contextlib.suppress(DataError):
            write_whole(place, lambda partial: _write(partial, index, stamp), error=DataError)
            break
    else:
        _log.warning("%s: its index could not be kept, so it is made at every start; set OPENDINO_CACHE", path)
    return index


def _cached(path: Path) -> Path:
    home = os.environ.get("OPENDINO_CACHE") or str(Path.home() / ".cache" / "opendino")
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:24]
    return Path(home) / "tars" / f"{name}{SUFFIX}"


def _read(place: Path, stamp: np.ndarray) -> TarIndex | None:
    try:
        with np.load(place) as kept:
            if not np.array_equal(kept["stamp"], stamp):
                return None
            index = TarIndex(kept["offsets"], kept["lengths"], kept["labels"], PathTable(kept["text"], kept["ends"]))
            return index if _fits(index) else None
    except (OSError, ValueError, KeyError, EOFError):  # missing, or damaged in some way
        return None
    except Exception as error:  # zipfile has errors of its own
        _log.debug("%s: %s", place, error)
        return None


def _agrees(path: Path, index: TarIndex) -> bool:
    """Whether the headers of some images, the last one's among them, are where an index says.

    An image more, less or of another length moves all behind it, so the last one tells of nearly any other tar.
    """
    rows = np.unique(np.linspace(0, len(index.offsets) - 1, _CHECKED).astype(np.int64)) if len(index.offsets) else []
    try:
        with path.open("rb") as file:
            for row in rows:
                file.seek(int(index.offsets[row]) - tarfile.BLOCKSIZE)
                header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
                name = index.names[int(row)]
                # Longer names, and those with other letters, stand before the header.
                alike = header.name == name or len(name) >= tarfile.LENGTH_NAME or not name.isascii()
                if header.size != index.lengths[row] or not alike:
                    return False
    except (OSError, ValueError, tarfile.TarError):
        return False
    return True


def _fits(index: TarIndex) -> bool:
    """Whether the columns of an index belong together; one that was altered could name bytes that are not there."""
    rows, ends = len(index.offsets), index.names.offsets
    return (
        all(column.shape == (rows,) and column.dtype == np.int64 for column in index[:3])
        and ends.shape == (rows + 1,)
        and ends.dtype == np.int64
        and index.names.text.dtype == np.uint8
        and ends[0] == 0
        and ends[-1] == index.names.text.size
        and bool((np.diff(ends) >= 0).all())
    )


def _write(place: Path, index: TarIndex, stamp: np.ndarray) -> None:
    arrays = {"offsets": index.offsets, "lengths": index.lengths, "labels": index.labels, "stamp": stamp}
    with place.open("wb") as file:
        np.savez(file, **arrays, text=index.names.text, ends=index.names.offsets)


def walk(path: Path) -> TarIndex:
    """The index of a tar, made from its headers and not kept.

    Raises:
        DataError: it is no plain tar, or cannot be read.
    """
    suffixes = image_suffixes()
    images: list[tuple[int, int, str]] = []
    names: list[bytes] = []
    labels: dict[str, int] = {}
    with path.open("rb") as file:
        for member in _members(path):
            stem, _, end = split_name(member.name)
            if f".{end.rpartition('.')[2]}".lower() in suffixes:
                images.append((member.offset_data, member.size, stem))
                names.append(os.fsencode(member.name))
            elif end == _LABEL and member.size <= _LONGEST_LABEL:
                file.seek(member.offset_data)
                with contextlib.suppress(ValueError):
                    # What is no label at all still has to be a number of the column.
                    labels[stem] = min(max(int(file.read(member.size)), NO_LABEL), np.iinfo(np.int64).max)
    return TarIndex(
        np.array([offset for offset, _, _ in images], dtype=np.int64),
        np.array([length for _, length, _ in images], dtype=np.int64),
        np.array([labels.get(stem, NO_LABEL) for _, _, stem in images], dtype=np.int64),
        PathTable.collect(names),
    )


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The files of a tar that lie in it as they are; what is behind a damaged place is not found, and said.

    Links and sparse files are passed over: the bytes that stand in the tar are not theirs.
    """
    found, size = 0, path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                found += 1
                if member.isreg() and not member.issparse():
                    if min(member.size, member.offset_data) < 0 or member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"{member.name!r} is said to have {member.size} bytes")
                    yield member
                archive.members = []  # pyrefly: ignore[missing-attribute]  tarfile would keep them all
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:  # the last two of numbers beyond measure
        if not found:
            raise DataError(
                f"{path}: cannot be read as a plain tar ({error}); a compressed one has to be unpacked, images in it "
                "could only be read in a row"
            ) from None
        _log.warning("%s: is damaged behind member %d (%s); what follows is not read", path, found, error)


def split_name(name: str) -> tuple[str, str, str]:
    """Sample and ending of a member: what stands before and behind the first dot of the file's own name.

    Source: the convention of webdataset, by which the files of a sample are found.
    """
    folder, slash, own = name.rpartition("/")
    stem, dot, end = own.partition(".")
    return f"{folder}{slash}{stem}", dot, end
