# SPDX-License-Identifier: Apache-2.0
"""Groups of images that are nearly the same: connected components of the graph of neighbours above a threshold.

For whole training sets, with a copy detector and on many machines, see `curate/dedup.py`, which this shares its parts
with.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from opendino.errors import ConfigError
from opendino.neighbours.components import components_of
from opendino.neighbours.exact import pairs, self_join
from opendino.search.index import Hit, Index

_AT_ONCE = 1024  # queries
_NEIGHBOURS = 20
_SLACK = 1e-3  # sums in another order differ by less

Edges = tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]


class Group(NamedTuple):
    """Images that hang together.

    Attributes:
        images: the one to keep first, that of most pixels; the score of each is its cosine with that one.
    """

    images: list[Hit]

    @property
    def spare(self) -> list[Hit]:
        """All but the one to keep."""
        return self.images[1:]


def find_duplicates(index: Index, threshold: float = 0.9, neighbours: int = _NEIGHBOURS) -> list[Group]:
    """Groups of near-duplicates, the largest group first.

    Args:
        index: of all images.
        threshold: cosine above which two images are joined; it depends on the model, so look at the page of results.
        neighbours: of each image that are looked at.

    Raises:
        ConfigError: the threshold is no cosine.
    """
    if not -1 <= threshold <= 1:
        raise ConfigError(f"threshold = {threshold}: is a cosine; give a number from -1 to 1, such as 0.9")
    if neighbours < 1:
        raise ConfigError(f"neighbours = {neighbours}: give 1 or more")
    roots = components_of(len(index), _edges(index, threshold, min(neighbours + 1, len(index))))
    order = np.argsort(roots, kind="stable")
    starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
    groups = [part for part in np.split(order, starts[1:]) if len(part) > 1]
    pixels = index.table["width"].to_numpy().astype(np.int64) * index.table["height"].to_numpy()
    found = []
    for members in groups:
        # Of the most pixels; of equal ones the first.
        members = members[np.lexsort((members, -pixels[members]))]
        vectors = index.vectors.take(members)
        scores = (vectors @ vectors[0]).tolist()
        found.append(Group([index.hit(score, int(at)) for score, at in zip(scores, members, strict=True)]))
    return sorted(found, key=lambda group: (-len(group.images), group.images[0].position))


def _edges(index: Index, threshold: float, k: int) -> Iterator[Edges]:
    exact = index.config.engine == "exact"
    joined = self_join(index.vectors, k, index.config, floor=threshold - _SLACK) if exact else None
    for start in range(0, len(index), _AT_ONCE):
        rows = slice(start, min(start + _AT_ONCE, len(index)))
        queries = index.vectors.block(rows.start, rows.stop)
        scores, places = (joined[0][rows], joined[1][rows]) if joined else index.search(queries, k)
        own, column = (scores > threshold - _SLACK).nonzero(as_tuple=True)
        other = places[own, column]
        near = other != own + start
        own, other = own[near], other[near]
        # Summed in one order wherever a pair stands, so that both ways of a pair decide alike.
        sure = pairs(queries, index.vectors, own, other) > threshold
        yield (own[sure] + start).numpy(), other[sure].numpy()
