# SPDX-License-Identifier: Apache-2.0
"""Several data sets as one, each with its share of an epoch: `data=mixture.yaml`.

    mix:
      - {data: photos, weight: 3}
      - {data: "satellite-{000..127}.tar", weight: 1, label_column: none}

Position p of an epoch belongs to one image, for good, so the shuffle, a resume and several processes are as exact as
with one data set. By default an epoch is just long enough for every image of every part to come at least once; images
of parts whose share is larger than their number come several times, evenly: the counts of two images of a part differ
by one at most.
"""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from opendino.config import read_yaml
from opendino.data.datasets._base import DecodeOptions, ImageDataset
from opendino.data.samplers import permute
from opendino.errors import ConfigError, DataError

_MOST = 2**40
"""Positions of an epoch, beyond which weights are taken for a slip."""

_MOST_LABELLED = 2**31
"""The same where each position has a label, which is kept in memory."""

_FIELDS = frozenset({"data", "weight", "path_column", "image_column", "label_column"})


class Part(NamedTuple):
    """A data set of a mixture.

    Attributes:
        source: what `open_dataset` takes.
        weight: share of an epoch, as compared with the other parts; None stands for its number of images.
        columns: `path_column`, `image_column`, `label_column` as far as they are given.
    """

    source: str
    weight: float | int | None
    columns: dict[str, str]


class MixtureDataset(ImageDataset):
    """Images of several data sets by weight.

    Args:
        name: what the mixture was opened from.
        parts: opened, with the same options.
        weights: of each part; its number of images where None.
        size: images of an epoch; 0 for as many as all images take to come at least once.
        seed: of which images come once more than others, and of which are left out of an epoch that is too small.

    Raises:
        DataError: a weight is not a positive number, or a part has no place in an epoch of this size.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[ImageDataset],
        weights: Sequence[float | int | None],
        size: int = 0,
        seed: int = 0,
    ) -> None:
        self.name, self.options, self._parts, self._seed = name, parts[0].options, parts, seed
        self._counts = shares([len(part) for part in parts], weights, size, name)
        self._starts = np.cumsum([0, *self._counts], dtype=np.int64)
        self.classes = sorted({label for part in parts for label in part.classes})
        if self.classes and all(part.targets is not None for part in parts):
            if len(self) > _MOST_LABELLED:
                raise DataError(
                    f"{name}: labels of the {len(self)} positions of an epoch do not fit into memory; give size: N, "
                    "or label_column: none for a part"
                )
            self.targets = self._labels()
        else:
            self.classes = []

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> bytes | Path:
        """The encoded image of a part, or the path to it."""
        part, row = self._locate(index)
        return self._parts[part].read(row)

    def identify(self, index: int) -> str:
        """The name that the image has in its part."""
        part, row = self._locate(index)
        return self._parts[part].identify(row)

    def facts(self) -> dict[str, Any]:
        """Also how many positions each part has, and which of its images: other weights are another run."""
        return {**super().facts(), "positions": self._counts, "mixture_seed": self._seed}

    def rows(self, part: int) -> Int64[np.ndarray, " n"]:
        """Rows of a part in the order of the epoch's positions that belong to it."""
        length, count = len(self._parts[part]), self._counts[part]
        whole = count // length * length
        rows = np.arange(count) % length
        rows[whole:] = permute(rows[whole:], length, self._seed, part)
        return rows

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        place, length = index - int(self._starts[part]), len(self._parts[part])
        if place < self._counts[part] // length * length:
            return part, place % length
        return part, int(permute(np.array(place % length), length, self._seed, part))

    def _labels(self) -> Int64[np.ndarray, " n"]:
        number = {name: place for place, name in enumerate(self.classes)}
        found = []
        for place, part in enumerate(self._parts):
            names = np.array([number[name] for name in part.classes], dtype=np.int64)
            assert part.targets is not None
            found.append(names[part.targets[self.rows(place)]])
        return np.concatenate(found)


def open_mixture(source: Path, options: DecodeOptions, **columns: str) -> MixtureDataset:
    """Open what a mixture file names; paths in it are relative to its folder.

    Args:
        source: YAML with `mix`, a list of parts, and optionally `size` and `seed`.
        options: how all images are decoded.
        columns: of all parts that do not name their own.

    Raises:
        DataError: it is no mixture, or a part cannot be opened.
    """
    from opendino.data.datasets import open_dataset

    parts, size, seed = read_mixture(source)
    for part in parts:
        place = Path(part.source)
        if place.suffix.lower() in (".yaml", ".yml") and place.is_file():
            raise DataError(f"{source}: its part {part.source} is a mixture itself; name the parts of that one here")
    reading = dataclasses.asdict(options)
    opened = [open_dataset(part.source, **reading, **{**columns, **part.columns}) for part in parts]
    return MixtureDataset(str(source), opened, [part.weight for part in parts], size, seed)


def read_mixture(source: Path) -> tuple[list[Part], int, int]:
    """Parts, size and seed of a mixture file.

    Raises:
        DataError: it is none; the message says what is wrong.
    """
    try:
        content = read_yaml(source)
    except ConfigError as error:
        raise DataError(str(error)) from None
    entries = content.get("mix")
    unknown = sorted(content.keys() - {"mix", "size", "seed"})
    if not isinstance(entries, list) or not entries or unknown:
        what = f"has {', '.join(unknown)}" if unknown else "has no list `mix`"
        raise DataError(f"{source}: {what}; a mixture is `mix: [{{data: DIR, weight: 1}}, ...]`, size and seed")
    size, seed = content.get("size", 0), content.get("seed", 0)
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in (size, seed)):
        raise DataError(f"{source}: size = {size}, seed = {seed}: use whole numbers of 0 or more")
    return [_part(source, entry) for entry in entries], size, seed


def _part(source: Path, entry: Any) -> Part:  # noqa: ANN401  whatever stands in the file
    given = {"data": entry} if isinstance(entry, str) else entry
    if not isinstance(given, dict) or not isinstance(given.get("data"), str) or given.keys() - _FIELDS:
        known = ", ".join(sorted(_FIELDS))
        raise DataError(f"{source}: {entry!r} is no part; write {{data: DIR, weight: 1}}, of {known}")
    columns = {key: str(value) for key, value in given.items() if key.endswith("_column")}
    weight = given.get("weight")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
        raise DataError(f"{source}: weight = {weight!r} of {given['data']} is no number")
    place = Path(given["data"]).expanduser()
    return Part(str(place if place.is_absolute() else source.parent / place), weight, columns)


def shares(
    lengths: Sequence[int], weights: Sequence[float | int | None], size: int = 0, name: str = "mixture"
) -> list[int]:
    """Positions of an epoch that each part gets: in proportion to the weights, each rounded by less than one.

    Args:
        lengths: images of each part.
        weights: of each part; its number of images where None.
        size: of the epoch; 0 for the smallest in which every part has as many positions as images.
        name: of the mixture, for the message.

    Raises:
        DataError: a weight is not a positive number, or a part has no place.
    """
    if None in weights and any(weight is not None for weight in weights):
        raise DataError(f"{name}: some parts have a weight and others none; give one to each, or to none")
    given = [length if weight is None else weight for length, weight in zip(lengths, weights, strict=True)]
    if not all(math.isfinite(weight) and weight > 0 for weight in given):
        raise DataError(f"{name}: weights {given}: use numbers above 0, and leave out what is not wanted")
    exact = [Fraction(weight) for weight in given]
    if not size:
        longest = max(length / weight for length, weight in zip(lengths, exact, strict=True))
        counts = [math.ceil(longest * weight) for weight in exact]
        if sum(counts) > _MOST:
            raise DataError(
                f"{name}: with weights {given} an epoch would have {sum(counts):.2g} positions until every image has "
                "come; give size: N, or weights that differ less"
            )
        return counts
    # By the sums so far, so that roundings do not add up.
    ends = [round(size * sum(exact[: place + 1], start=Fraction(0)) / sum(exact)) for place in range(len(exact))]
    counts = [end - start for start, end in pairwise([0, *ends])]
    if min(counts) < 1:
        raise DataError(
            f"{name}: an epoch of size = {size} has no place for a part of weight {min(given)}; make it larger"
        )
    return counts
