# SPDX-License-Identifier: Apache-2.0
"""Tensors that lie in safetensors files, of which only the rows that are asked for are read; `store.py` uses it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor


class _Piece(NamedTuple):
    """Rows of a tensor in one file, by an opened file and the tensor's name in it."""

    file: Any
    name: str
    shape: tuple[int, ...]


class Saved:
    """A tensor in one file, or in several, cut along its first axis in their order.

    Attributes:
        shape: of the whole.
    """

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        first = pieces[0].shape
        self._pieces = pieces
        self.shape = (sum(piece.shape[0] for piece in pieces), *first[1:]) if first else ()

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def rows(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Some rows, or all; no other bytes are read. A single number is given as it is.

        Args:
            start: first row.
            stop: behind the last row; None for all that are left.
        """
        if not self.shape:
            return self._pieces[0].file.get_tensor(self._pieces[0].name)
        stop, found = self.shape[0] if stop is None else stop, []
        for file, name, shape in self._pieces:
            low, high = max(start, 0), min(stop, shape[0])
            if low < high:
                found.append(file.get_slice(name)[low:high] if high - low < shape[0] else file.get_tensor(name))
            start, stop = start - shape[0], stop - shape[0]
        if found:
            return torch.cat(found) if len(found) > 1 else found[0]
        file, name, shape = next((piece for piece in self._pieces if piece.shape[0]), self._pieces[0])
        return file.get_tensor(name)[:0] if shape[0] == 0 else file.get_slice(name)[0:1][:0]


def find(files: Sequence[Path]) -> dict[str, Saved]:
    """The tensors of several files by their names; only the headers are read.

    Raises:
        OSError: a file cannot be read.
        SafetensorError: a file is damaged.
    """
    pieces: dict[str, list[_Piece]] = {}
    for path in files:
        file = safe_open(path, "pt")  # stays open as long as a tensor of it may be asked for
        for name in file.keys():  # noqa: SIM118 (no dictionary)
            pieces.setdefault(name, []).append(_Piece(file, name, tuple(file.get_slice(name).get_shape())))
    return {name: Saved(found) for name, found in pieces.items()}
