# SPDX-License-Identifier: Apache-2.0
"""Figures of retrieval from ranked lists: average precision with easy, hard and junk images, recall, precision, GAP."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

Ranked = Sequence[int] | Int[np.ndarray, " n"]
"""Database rows, best first."""

SETUPS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""What counts as right, and what is passed over, in each setup of the revisited Oxford and Paris sets."""


def average_precision(ranked: Ranked, right: Collection[int], junk: Collection[int] = ()) -> float:
    """Area under the curve of precision over recall by the trapezoidal rule, between 0 and 1.

    Args:
        ranked: database rows, best first.
        right: rows that are right; not empty.
        junk: rows that are passed over, as if they were not there.

    Source: Radenovic et al. 2018, "Revisiting Oxford and Paris", and the code of that benchmark.
    """
    positions = right_positions(ranked, right, junk)
    total = 0.0
    for found, position in enumerate(positions):
        before = found / position if position else 1.0
        total += (before + (found + 1) / (position + 1)) / 2
    return total / len(set(right))


def right_positions(ranked: Ranked, right: Collection[int], junk: Collection[int] = ()) -> list[int]:
    """Places, counted from 0, of right rows in a list that has lost its junk."""
    order = np.asarray(ranked)
    order = order[~np.isin(order, list(junk))]
    return np.flatnonzero(np.isin(order, list(right))).tolist()


def precision_at(ranked: Ranked, right: Collection[int], k: int, junk: Collection[int] = ()) -> float:
    """Share of right rows among the first k, or among as many as it takes to reach the last right one if that is fewer.

    Source: as `average_precision`.
    """
    positions = [position + 1 for position in right_positions(ranked, right, junk)]
    if not positions:
        return 0.0
    last = min(max(positions), k)
    return sum(position <= last for position in positions) / last


def recall_at(ranked: Ranked, right: Collection[int], k: int, junk: Collection[int] = ()) -> float:
    """1 where a right row is among the first k, else 0."""
    positions = right_positions(ranked, right, junk)
    return float(bool(positions) and positions[0] < k)


def global_average_precision(
    confidence: Float[np.ndarray, " q"], right: Bool[np.ndarray, " q"], answerable: Bool[np.ndarray, " q"]
) -> float:
    """Average precision over all predictions together, surest first, between 0 and 1.

    Args:
        confidence: of the one prediction of each query.
        right: whether it is right; never for a query that has no answer.
        answerable: whether the query has an answer in the database.

    Source: Weyand et al. 2020, "Google Landmarks v2", section 5; Ypsilantis et al. 2021, "The Met Dataset".
    """
    if not answerable.any():
        return 0.0
    order = np.argsort(-confidence, kind="stable")
    hits = right[order].astype(np.float64)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / answerable.sum())
