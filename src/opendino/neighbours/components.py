# SPDX-License-Identifier: Apache-2.0
"""Connected components of a graph whose edges stream in from shards; memory is one number a node.

Nodes are joined shard by shard: the components of a shard are found on the roots that its edges touch, then the
roots of one component get the smallest of them. Read next: `dedup.py`.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from opendino.errors import DataError

Nodes = Int64[np.ndarray, " _"]


class Components:
    """A disjoint-set forest over nodes 0..n-1, in numpy.

    Args:
        n: number of nodes; each is a component of its own at first.
    """

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n, dtype=np.int64)

    def find(self, nodes: Nodes) -> Nodes:
        """The root of each node: the smallest node of its component."""
        roots = self._parent[nodes]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above

    def join(self, first: Nodes, second: Nodes) -> None:
        """Make each pair one component.

        Raises:
            DataError: a node is out of range.
        """
        if not len(first):
            return
        if min(first.min(), second.min()) < 0 or max(first.max(), second.max()) >= len(self._parent):
            raise DataError(f"an edge names a node outside of 0 to {len(self._parent) - 1}; make the graph again")
        ends = np.stack([self.find(first), self.find(second)])
        roots, places = np.unique(ends, return_inverse=True)
        a, b = places.reshape(2, -1)
        graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(len(roots), len(roots)))
        _, label = connected_components(graph, directed=False)
        smallest = np.full(label.max() + 1, len(self._parent), dtype=np.int64)
        np.minimum.at(smallest, label, roots)
        self._parent[roots] = smallest[label]

    def labels(self) -> Nodes:
        """Root of every node; equal for the nodes of one component."""
        self._parent = self.find(np.arange(len(self._parent), dtype=np.int64))
        return self._parent.copy()


def components_of(n: int, edges: Iterable[tuple[Nodes, Nodes]]) -> Nodes:
    """Smallest node of the component of every node.

    Args:
        n: number of nodes.
        edges: shards of pairs, in any order and number; the result does not depend on it.

    Source: DINOv2 paper, appendix A.3: connected components by a scalable disjoint set.
    """
    forest = Components(n)
    for first, second in edges:
        forest.join(first, second)
    return forest.labels()
