# SPDX-License-Identifier: Apache-2.0
"""Tables of names in two directions; `hf.py` shows one.

A table maps an official name to the name in the other format, or to several names when the other format keeps the
tensor in parts, cut along its first axis. `{n}` stands for a block's number, `{p}` for weight or bias.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from opendino.errors import ConversionError

Table = Mapping[str, str | tuple[str, ...]]

_WILD = {"{n}": r"(?P<n>\d+)", "{p}": "(?P<p>weight|bias)"}


class Converted(NamedTuple):
    """Weights under new names, and what did not come along.

    Attributes:
        state: new name to tensor.
        dropped: names of the input that the new format cannot hold.
        filled: names of the output that the input did not hold; they got the value that training starts from.
    """

    state: dict[str, Tensor]
    dropped: tuple[str, ...] = ()
    filled: tuple[str, ...] = ()


class _Place(NamedTuple):
    """Where a name goes: part `index` of `parts` of the target, or the whole into all targets."""

    targets: tuple[str, ...]
    index: int
    parts: int


def from_official(where: str, state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """Official names to the other format's.

    Args:
        where: the file or model, for messages.
        state: official names, chunks folded.
        table: official name to the other's.

    Raises:
        ConversionError: a name is not in the table, or a tensor cannot be cut as the table asks.
    """
    return _translate(where, state, _rows(tuple(table.items()), False))


def to_official(where: str, state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """The other format's names to the official ones; the exact inverse of `from_official`.

    Raises:
        ConversionError: a name is not in the table, or parts of a tensor are missing.
    """
    return _translate(where, state, _rows(tuple(table.items()), True))


def some(names: Iterable[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _translate(
    where: str, state: Mapping[str, Tensor], rows: tuple[tuple[re.Pattern[str], _Place], ...]
) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    wanted: dict[str, int] = {}
    unknown: list[str] = []
    for name, tensor in state.items():
        found = next(((match, place) for pattern, place in rows if (match := pattern.fullmatch(name))), None)
        if found is None:
            unknown.append(name)
            continue
        match, place = found
        targets = [target.format(**match.groupdict()) for target in place.targets]
        if place.parts > 1:
            parts.setdefault(targets[0], {})[place.index] = tensor
            wanted[targets[0]] = place.parts
        else:
            out |= zip(targets, _cut(where, name, tensor, len(targets)), strict=True)
    if unknown:
        raise ConversionError(
            f"{where}: unexpected {some(unknown)}; the table of names of this format has no place for them"
        )
    return out | _join(where, parts, wanted)


def _cut(where: str, name: str, tensor: Tensor, parts: int) -> tuple[Tensor, ...]:
    if parts == 1:
        return (tensor,)
    if tensor.ndim == 0 or tensor.shape[0] % parts:
        raise ConversionError(
            f"{where}: {name} has {len(tensor) if tensor.ndim else 0} rows, which {parts} equal parts do not make up"
        )
    return tensor.chunk(parts)


def _join(where: str, parts: Mapping[str, Mapping[int, Tensor]], wanted: Mapping[str, int]) -> dict[str, Tensor]:
    lacking = [
        f"part {i + 1} of {wanted[name]} of {name}"
        for name in parts
        for i in range(wanted[name])
        if i not in parts[name]
    ]
    if lacking:
        raise ConversionError(f"{where}: missing {some(lacking)}; the file does not hold the whole model")
    for name, given in parts.items():
        shapes = {tuple(part.shape[1:]) if part.ndim else () for part in given.values()}
        if len(shapes) > 1 or any(part.ndim == 0 for part in given.values()):
            came = ", ".join(str(tuple(given[i].shape)) for i in range(wanted[name]))
            raise ConversionError(f"{where}: the parts of {name} have shapes {came}, which do not make up one tensor")
    return {name: torch.cat([given[i] for i in range(wanted[name])]) for name, given in parts.items()}


@lru_cache(maxsize=16)
def _rows(
    table: tuple[tuple[str, str | tuple[str, ...]], ...], inverse: bool
) -> tuple[tuple[re.Pattern[str], _Place], ...]:
    rows = []
    for official, other in table:
        names = (other,) if isinstance(other, str) else other
        if inverse:
            rows += [(_pattern(name), _Place((official,), i, len(names))) for i, name in enumerate(names)]
        else:
            rows.append((_pattern(official), _Place(names, 0, 1)))
    return tuple(rows)


def _pattern(name: str) -> re.Pattern[str]:
    pattern = re.escape(name)
    for wild, expression in _WILD.items():
        pattern = pattern.replace(re.escape(wild), expression)
    return re.compile(pattern)
