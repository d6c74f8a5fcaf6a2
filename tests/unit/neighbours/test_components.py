# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from opendino.errors import DataError
from opendino.neighbours.components import Components, components_of


def array(*values):
    return np.array(values, dtype=np.int64)


def test_two_shards_joined_by_hand():
    edges = [(array(3, 6), array(4, 7)), (array(1, 4), array(3, 5))]
    assert components_of(9, edges).tolist() == [0, 1, 2, 1, 1, 1, 6, 6, 8]


def test_a_chain_of_many_shards_is_one_component():
    edges = [(array(i), array(i + 1)) for i in reversed(range(200))]
    assert set(components_of(201, edges).tolist()) == {0}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60), st.integers(1, 7), st.randoms())
def test_any_shards_in_any_order_equal_scipy(edges, parts, random):
    shards = [edges[i::parts] for i in range(parts)]
    random.shuffle(shards)
    found = components_of(30, [tuple(np.array(shard, dtype=np.int64).reshape(-1, 2).T) for shard in shards])
    a, b = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    _, oracle = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(30, 30)), directed=False)
    smallest = {label: node for node, label in reversed(list(enumerate(oracle.tolist())))}
    assert found.tolist() == [smallest[label] for label in oracle.tolist()]


def test_nodes_that_are_not_there():
    with pytest.raises(DataError, match="outside of 0 to 4"):
        Components(5).join(array(1), array(5))
