# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.errors import ConfigError
from opendino.search import find_duplicates, open_index


def names(group):
    return [hit.path.rpartition("/")[2] for hit in group.images]


def test_copies_are_found(embedded):
    groups = find_duplicates(open_index(embedded), 0.999999)
    assert [names(group) for group in groups] == [["00.png", "copy00.png"], ["04.png", "copy04.png"]]
    assert [hit.path.rpartition("/")[2] for hit in groups[0].spare] == ["copy00.png"]
    assert groups[0].images[1].score == pytest.approx(1, abs=1e-5)


def test_a_low_threshold_joins_all(embedded):
    index = open_index(embedded)
    groups = find_duplicates(index, -1.0, neighbours=100)
    assert [len(group.images) for group in groups] == [len(index)]


def test_few_neighbours_still_join_along_a_chain(embedded):
    index = open_index(embedded)
    few, many = (find_duplicates(index, 0.9, neighbours=n) for n in (3, 100))
    assert sum(len(group.images) for group in few) == sum(len(group.images) for group in many)


def test_a_threshold_is_a_cosine(embedded):
    with pytest.raises(ConfigError, match="is a cosine"):
        find_duplicates(open_index(embedded), 90.0)
