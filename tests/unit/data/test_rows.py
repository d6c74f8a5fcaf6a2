# SPDX-License-Identifier: Apache-2.0
import numpy as np

from opendino.data.datasets import open_dataset
from opendino.data.rows import Rows, sample


def test_rows_are_those_of_the_whole(picture_folder):
    whole = open_dataset(picture_folder)
    part = Rows(whole, np.array([7, 3]))
    assert [part.identify(i) for i in range(len(part))] == [whole.identify(7), whole.identify(3)]
    assert part.read(1) == whole.read(3)
    assert part.targets.tolist() == [whole.label(7), whole.label(3)]
    assert Rows(whole, np.array([7, 3]), np.array([5, 6])).targets.tolist() == [5, 6]


def test_a_sample_is_the_same_every_time(picture_folder):
    whole = open_dataset(picture_folder)
    names = [[part.identify(i) for i in range(len(part))] for part in (sample(whole, 12), sample(whole, 12))]
    assert names[0] == names[1] == sorted(set(names[0]), key=names[0].index)
    assert len(names[0]) == 12
    assert {name.split("/")[-2] for name in names[0]} >= {"class0", "class3"}, "from all over the data set"
    assert sample(whole, 40) is whole
