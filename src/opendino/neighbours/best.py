# SPDX-License-Identifier: Apache-2.0
"""The best of what was offered to each of many rows, kept while blocks of scores pass by.

Finding the best of a long row by sorting costs more than the product that made it. Here a score is looked at again
only where it is above the row's bar, the least of the k best so far; and of eight neighbours only the largest is
compared with the bar. A candidate is one int64: score above, place below, so that selecting is sorting whole numbers,
and of equal scores the smaller place stays. Read next: `exact.py`.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

_GROUP = 8  # scores of which only the largest is compared
_ROOM = 3  # candidates kept for each one wanted before the best are chosen
_NONE = -(1 << 63)
_LOW = 0xFFFFFFFF


def bytes_a_row(k: int) -> int:
    """Memory of a row whose k best are kept."""
    return 8 * _ROOM * k + 12


class Best:
    """The k best places of each row.

    Args:
        rows: how many.
        k: places kept of each.
        floor: scores up to this are of no interest; compared as rounded to the scores' number format.
        device: of the scores.

    Attributes:
        bar: for each row the score that one has to be above.
    """

    def __init__(self, rows: int, k: int, *, floor: float = -math.inf, device: torch.device | str = "cpu") -> None:
        self.k, self.floor = k, floor
        self.bar = torch.full((rows,), floor, dtype=torch.float32, device=device)
        self._held = torch.full((rows, _ROOM * k), _NONE, dtype=torch.int64, device=device)
        self._count = torch.zeros(rows, dtype=torch.int64, device=device)

    def offer(self, scores: Float[Tensor, "n m"], first: int, start: int = 0) -> None:
        """Scores of places first and on, for rows start and on; contiguous, or the transpose of what is.

        Args:
            scores: finite.
            first: place of the first column; no place is offered to a row twice.
            start: row of the first row.
        """
        whole = scores.shape[1] // _GROUP * _GROUP
        for low, high, group in ((0, whole, _GROUP), (whole, scores.shape[1], 1)):
            if high > low:
                self._offer(scores[:, low:high], first + low, slice(start, start + len(scores)), group)

    def result(self, rows: slice = slice(None)) -> tuple[Float32[Tensor, "n k"], Int64[Tensor, "n k"]]:
        """Scores and places, in no order; -inf and -1 where there were fewer than k.

        Args:
            rows: that are wanted; a few at a time need little memory.
        """
        wanted = torch.arange(*rows.indices(len(self.bar)), device=self.bar.device)
        self._choose(wanted[self._count[wanted] > self.k])  # up to k stand first already
        keys = self._held[rows, : self.k]
        none = keys == _NONE
        return scores_of(keys).masked_fill(none, -math.inf), (_LOW - (keys & _LOW)).masked_fill(none, -1)

    def _offer(self, scores: Float[Tensor, "n m"], first: int, rows: slice, group: int) -> None:
        if float(self.bar[rows].min()) == -math.inf:
            self._raise_bar(scores, rows)
        own, column = _above(scores, self.bar[rows], group)
        keys = keys_of(scores[own, column], column + first)
        new = torch.bincount(own, minlength=len(scores))
        full = self._count[rows] + new > self._held.shape[1]
        if full.any():
            self._choose(full.nonzero()[:, 0] + rows.start)
            if int((self._count[rows] + new).max()) > self._held.shape[1]:
                self._choose_among(scores, first, rows)
                return
        rank = torch.arange(len(own), device=own.device) - (new.cumsum(0) - new)[own]
        place = (own + rows.start) * self._held.shape[1] + self._count[rows][own] + rank
        self._held.view(-1)[place] = keys
        self._count[rows] += new

    def _raise_bar(self, scores: Float[Tensor, "n m"], rows: slice) -> None:
        """To just below the k-th of the first scores, so that only k of them go through."""
        if scores.shape[1] > self.k:
            least = kth(scores.float(), self.k).to(scores.dtype)
            below = torch.nextafter(least, torch.full_like(least, -math.inf)).float()
            self.bar[rows] = torch.maximum(self.bar[rows], below)

    def _choose(self, rows: Int64[Tensor, " r"]) -> None:
        """Keep the k best candidates of some rows, and raise their bar."""
        if len(rows):
            self._keep(rows, largest(self._held[rows], self.k))

    def _choose_among(self, scores: Float[Tensor, "n m"], first: int, rows: slice) -> None:
        """The best of candidates and new scores at once, where those are too many to be noted first."""
        top, column = scores.topk(min(self.k, scores.shape[1]), dim=1, sorted=False)
        keys = torch.cat([self._held[rows], keys_of(top, column + first)], dim=1)
        self._keep(torch.arange(rows.start, rows.stop, device=keys.device), largest(keys, self.k))

    def _keep(self, rows: Int64[Tensor, " r"], keys: Int64[Tensor, "r k"]) -> None:
        self._held[rows] = torch.nn.functional.pad(keys, (0, self._held.shape[1] - self.k), value=_NONE)
        self._count[rows] = (keys != _NONE).sum(dim=1)
        least = keys.min(dim=1).values
        self.bar[rows] = torch.where(least == _NONE, self.bar[rows], torch.maximum(self.bar[rows], scores_of(least)))


def _above(
    scores: Float[Tensor, "n m"], bar: Float32[Tensor, " n"], group: int
) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " p"]]:
    """Row and column of the scores above their row's bar, row by row."""
    bar = bar.to(scores.dtype) + 0.0  # no -0, whose bits come before all others
    turned = scores.stride(1) != 1
    if scores.dtype == torch.bfloat16 and float(bar.min()) >= 0:
        # Above 0 bits are in the order of the numbers, and whole numbers are compared several times faster.
        scores = scores.T.view(torch.int16).T if turned else scores.view(torch.int16)
        bar = bar.view(torch.int16)
    apart = scores.shape[1] // group  # a group's columns are so far apart: maxima of whole vectors
    # Reducing the transpose itself would be many times slower.
    most = scores.T.unflatten(0, (group, apart)).amax(0).T if turned else scores.unflatten(1, (group, apart)).amax(1)
    own, place = (most > bar[:, None]).nonzero(as_tuple=True)
    near = scores.unflatten(1, (group, apart))[own, :, place]
    which, member = (near > bar[own][:, None]).nonzero(as_tuple=True)
    return own[which], member * apart + place[which]


def keys_of(scores: Float[Tensor, "*n"], places: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """One whole number of score and place: ordered by score, and of equal ones the smaller place first."""
    bits = scores.float().view(torch.int32)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) | (_LOW - places)


def scores_of(keys: Int64[Tensor, "*n"]) -> Float32[Tensor, "*n"]:
    """The scores in keys."""
    bits = (keys >> 32).int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def largest(keys: Int64[Tensor, "n m"], k: int) -> Int64[Tensor, "n k"]:
    """The k largest of each row, in no order."""
    if keys.device.type != "cpu":
        return keys.topk(k, dim=1, sorted=False).values
    # numpy's selection runs on whole vectors; torch's is several times slower.
    return torch.from_numpy(np.partition(keys.numpy(), keys.shape[1] - k, axis=1)[:, -k:])


def kth(scores: Float32[Tensor, "n m"], k: int) -> Float32[Tensor, " n"]:
    """The k-th largest of each row."""
    if scores.device.type != "cpu":
        return scores.topk(k, dim=1, sorted=False).values.min(dim=1).values
    at = scores.shape[1] - k
    return torch.from_numpy(np.partition(scores.contiguous().numpy(), at, axis=1)[:, at])
