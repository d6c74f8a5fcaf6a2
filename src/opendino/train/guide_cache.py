# SPDX-License-Identifier: Apache-2.0
"""What a frozen teacher said of crops, kept on the disk; of use where crops come again, see `crops.fixed_views`.

A crop is known by its pixels: two sums of them, modulo 2^64, with weights that mean nothing. So nothing has to be
known of data sets, seeds or epochs, and a crop that comes again by whatever way is found.

Files are only added to. Each process writes files of its own: the tokens of a crop first, then its key, and a
checksum with it. A record whose end is missing or whose checksum is wrong is as if it were not there, so a run may be
killed at any moment, and several may use one folder.
"""

import logging
import os
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from opendino.axes import Images
from opendino.errors import CheckpointError
from opendino.files import writing
from opendino.methods.guide import Said

_KEY = np.dtype([("first", "<i8"), ("second", "<i8"), ("check", "<u4")])
_REFRESH = 200  # batches between two looks at what other processes have added
_log = logging.getLogger(__name__)

Name = tuple[int, int]
"""The two sums by which a crop is known."""


class _Place(NamedTuple):
    """Where a record is: its file and number there, and the checksum of its bytes."""

    part: Path
    row: int
    check: int


class GuideCache:
    """Tokens of crops in float16, in a folder; said tokens go through float16 whether they are found or new.

    Args:
        folder: of one teacher, one size of crops that it is shown, and one precision; made when it is needed.

    Attributes:
        asked: crops so far.
        found: those among them that were there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.found = folder, 0, 0
        self._places: dict[tuple[str, Name], _Place] = {}
        self._read: dict[Path, int] = {}
        self._handles: dict[Path, int] = {}
        self._own: dict[str, tuple[Path, int]] = {}
        self._batches = 0

    def said(self, crops: Images, say: Callable[[Images], Said]) -> Said:
        """What a teacher says of crops; it is asked of those alone that are not there yet.

        Args:
            crops: all of one size.
            say: asks the teacher.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        if self._batches % _REFRESH == 0:
            self.refresh()
        self._batches += 1
        names = names_of(crops)
        # The number of tokens follows from the size of the crops, so that is what their kind is called by.
        kind = f"{crops.shape[1]}x{crops.shape[2]}x{crops.shape[3]}"
        known = [self._find(kind, name) for name in names]
        missing = [row for row, tokens in enumerate(known) if tokens is None]
        self.asked, self.found = self.asked + len(names), self.found + len(names) - len(missing)
        if missing:
            new = say(crops[torch.tensor(missing, device=crops.device)])
            for row, tokens in zip(missing, _packed(new), strict=True):
                known[row] = tokens
            self._add(kind, [names[row] for row in missing], [known[row] for row in missing])
        return _unpacked([tokens for tokens in known if tokens is not None], crops.device)

    def refresh(self) -> None:
        """Look at what is in the folder by now, written by whichever process."""
        for keys in sorted(self.folder.glob("*.keys")):
            before, part = self._read.get(keys, 0), keys.with_suffix(".tokens")
            records = np.fromfile(keys, dtype=_KEY, offset=before * _KEY.itemsize)
            kind = keys.name.partition("_")[0]
            for row, (first, second, check) in enumerate(records.tolist(), start=before):
                self._places.setdefault((kind, (first, second)), _Place(part, row, check))
            self._read[keys] = before + len(records)

    def _find(self, kind: str, name: Name) -> "np.ndarray | None":
        place = self._places.get((kind, name))
        if place is None:
            return None
        shape = self._shape(place.part)
        try:
            size = 2 * int(np.prod(shape))
            content = os.pread(self._handle(place.part), size, place.row * size)
        except OSError:
            content = b""
        if not content or zlib.crc32(content) != place.check:
            _log.warning("%s: record %d is damaged, so the teacher is asked again", place.part, place.row)
            del self._places[kind, name]
            return None
        return np.frombuffer(content, dtype=np.float16).reshape(shape)

    def _add(self, kind: str, names: Sequence[Name], tokens: Sequence["np.ndarray | None"]) -> None:
        rows = [row for row in tokens if row is not None]
        part, count = self._own.get(kind) or (self._new_part(kind, rows[0].shape), 0)
        contents = [row.tobytes() for row in rows]
        checks = [zlib.crc32(content) for content in contents]
        with writing(part, CheckpointError):
            with part.open("ab") as file:
                file.write(b"".join(contents))
            records = [(*name, check) for name, check in zip(names, checks, strict=True)]
            with part.with_suffix(".keys").open("ab") as file:
                file.write(np.array(records, dtype=_KEY).tobytes())
        for row, (name, check) in enumerate(zip(names, checks, strict=True), start=count):
            self._places[kind, name] = _Place(part, row, check)
        self._own[kind] = (part, count + len(rows))
        self._read[part.with_suffix(".keys")] = count + len(rows)

    def _new_part(self, kind: str, shape: tuple[int, ...]) -> Path:
        with writing(self.folder, CheckpointError):
            self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{kind}_{'x'.join(map(str, shape))}_{uuid.uuid4().hex[:12]}.tokens"

    def _shape(self, part: Path) -> tuple[int, ...]:
        return tuple(map(int, part.name.split("_")[1].split("x")))

    def _handle(self, part: Path) -> int:
        if part not in self._handles:
            self._handles[part] = os.open(part, os.O_RDONLY)
        return self._handles[part]


def names_of(crops: Images) -> list[Name]:
    """Names of crops: equal for equal pixels, and for others different but for a chance of about 2^-100."""
    pixels = crops.detach().float().flatten(1).view(torch.int32).long()
    found = [(pixels * weights.to(crops.device)).sum(dim=1) for weights in _weights(pixels.shape[1])]
    return list(zip(*(sums.tolist() for sums in found), strict=True))


def _weights(count: int) -> list[Int64[Tensor, " n"]]:
    """Two lists of odd numbers that look random, the same on every machine (splitmix64 of the place)."""
    places = np.arange(count, dtype=np.uint64)
    lists = []
    for start in (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03):
        x = (places + np.uint64(1)) * np.uint64(start)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        lists.append(torch.from_numpy(((x ^ (x >> np.uint64(31))) | np.uint64(1)).view(np.int64)))
    return lists


def _packed(said: Said) -> list[np.ndarray]:
    """Each crop's tokens as [h, w, D] with one more row of the grid, whose first place holds CLS; float16."""
    first = said.patches.new_zeros((len(said.cls), 1, *said.patches.shape[2:]))
    first[:, 0, 0] = said.cls.to(first.dtype)
    return list(torch.cat([first, said.patches], dim=1).half().cpu().numpy())


def _unpacked(tokens: Sequence[np.ndarray], device: torch.device) -> Said:
    rows: Float[Tensor, "GB h1 w D"] = torch.from_numpy(np.stack(tokens)).to(device).float()
    return Said(rows[:, 0, 0], rows[:, 1:])
