# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opendino.data.datasets import DecodeOptions, open_dataset
from opendino.data.datasets._base import ImageDataset
from opendino.data.datasets.mixture import MixtureDataset, shares
from opendino.errors import DataError


class Numbers(ImageDataset):
    """Images that are their own names; labels by their numbers."""

    def __init__(self, name, length, classes=()):
        self.name, self.length, self.options, self.classes = name, length, DecodeOptions(), list(classes)
        self.targets = np.arange(length, dtype=np.int64) % len(classes) if classes else None

    def __len__(self):
        return self.length

    def read(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        return f"{self.name}{index}".encode()

    def identify(self, index):
        return f"{self.name} {index}"


def test_shares_by_hand():
    assert shares([10, 100], [None, None]) == [10, 100]
    # Every one of the hundred comes once, so the ten come thirty times in all.
    assert shares([10, 100], [3, 10]) == [30, 100]
    assert shares([100, 10], [1, 1]) == [100, 100]
    assert shares([5, 5, 5], [1, 1, 1], size=10) == [3, 4, 3]
    assert sum(shares([7, 9, 11], [0.2, 0.3, 0.5], size=1001)) == 1001


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(0, 120),
    st.integers(0, 5),
)
def test_every_part_has_its_share_and_its_images_come_evenly(parts, size, seed):
    lengths, weights = zip(*parts, strict=True)
    sets = [Numbers(f"{place}-", length) for place, length in enumerate(lengths)]
    if size and size < 9 * 4 * 4:
        size += 9 * 4 * 4
    mixed = MixtureDataset("here", sets, list(map(float, weights)), size, seed)
    found = Counter(mixed.read(row) for row in range(len(mixed)))
    assert not size or len(mixed) == size
    for place, (length, weight) in enumerate(parts):
        counts = [found.get(f"{place}-{row}".encode(), 0) for row in range(length)]
        assert max(counts) - min(counts) <= 1
        assert abs(sum(counts) - len(mixed) * weight / sum(weights)) <= len(parts)
        assert size or min(counts) >= 1, "nothing is left out"


def test_labels_are_joined_by_name():
    mixed = MixtureDataset("here", [Numbers("a", 4, ["cat", "dog"]), Numbers("b", 2, ["eel", "cat"])], [1.0, 1.0])
    assert mixed.classes == ["cat", "dog", "eel"]
    names = {mixed.read(row).decode(): mixed.classes[mixed.targets[row]] for row in range(len(mixed))}
    assert names == {"a0": "cat", "a1": "dog", "a2": "cat", "a3": "dog", "b0": "eel", "b1": "cat"}
    assert mixed.identify(0) == "a 0"
    without = MixtureDataset("here", [Numbers("a", 4, ["cat", "dog"]), Numbers("b", 2)], [None, None])
    assert without.targets is None
    assert without.classes == []


def test_a_file_names_parts_of_every_kind(tmp_path, make_tar, png):
    make_tar("b.tar", {f"{row}.png": png(row) for row in range(2)})
    (tmp_path / "photos").mkdir()
    for row in range(6):
        (tmp_path / "photos" / f"{row}.png").write_bytes(png(row))
    recipe = tmp_path / "mixture.yaml"
    recipe.write_text("mix: [{data: photos, weight: 1}, {data: b.tar, weight: 0.5, label_column: none}]\n")
    mixed = open_dataset(recipe, channels=1)
    assert len(mixed) == 9
    assert mixed.image(8).mode == "L"
    assert mixed.name == str(recipe)
    assert Counter(mixed.identify(row).rpartition("/")[0] for row in range(9)) == {
        str(tmp_path / "photos"): 6, str(tmp_path / "b.tar"): 3,
    }  # fmt: skip
    recipe.write_text("mix: [photos, b.tar]\nsize: 8\nseed: 3\n")
    assert len(open_dataset(recipe)) == 8
    assert open_dataset(recipe).facts() == {"images": 8, "positions": [6, 2], "mixture_seed": 3}
    recipe.write_text("mix: [{data: photos, weight: 1}, {data: b.tar, weight: 1}]\nsize: 8\nseed: 3\n")
    assert open_dataset(recipe).facts()["positions"] == [4, 4], "a run that goes on is told of other weights"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: here", "has data; a mixture is"),
        ("mix: []", "has no list `mix`"),
        ("mix: [{data: a, wieght: 1}]", "is no part; write"),
        ("mix: [3]", "3 is no part"),
        ("mix: [{data: a, weight: much}]", "weight = 'much' of a is no number"),
        ("mix: [a]\nsize: -1", "size = -1"),
        ("mix: [nowhere]", "nowhere: there is no such file or folder"),
        ("mix: [a", "not valid YAML"),
        ("mix: [mixture.yaml]", "is a mixture itself"),
    ],
)
def test_what_is_no_mixture_is_said(tmp_path, text, message):
    (tmp_path / "mixture.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "mixture.yaml")


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="use numbers above 0"):
        shares([3, 3], [1.0, 0.0])
    with pytest.raises(DataError, match="some parts have a weight and others none"):
        shares([3, 3], [1.0, None])
    with pytest.raises(DataError, match="an epoch would have 3e\\+12 positions"):
        shares([3, 3], [1.0, 1e-12])
    assert shares([3, 3], [1.0, 1e-12], size=3_000_000_000_000)[1] == 3
    with pytest.raises(DataError, match="labels of the 3000000003 positions"):
        MixtureDataset("here", [Numbers("a", 3, ["x"]), Numbers("b", 3, ["x"])], [1, 1000000000])
    with pytest.raises(DataError, match="has no place for a part of weight 1"):
        shares([3, 3], [1.0, 100.0], size=10)
