# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from opendino.curate._features import OnDisk
from opendino.errors import DataError


def test_rows_are_read_across_shards_with_length_one(embedded):
    features = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float16)
    matrix = OnDisk(embedded(features, rows=np.arange(12) * 2))
    whole = features.astype(np.float32)
    wanted = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(matrix.block(3, 11), wanted[3:11], rtol=1e-6)
    np.testing.assert_allclose(matrix.take(np.array([11, 0, 6])), wanted[[11, 0, 6]], rtol=1e-6)
    assert (len(matrix), matrix.dim) == (12, 3)
    some = OnDisk(embedded(features, rows=np.arange(12) * 2), np.array([2, 14, 22]))
    np.testing.assert_allclose(some.block(0, 3), wanted[[1, 7, 11]], rtol=1e-6)


def test_rows_are_held_where_they_fit(embedded):
    features = np.random.default_rng(0).normal(size=(12, 3))
    folder = embedded(features)
    held, read = OnDisk(folder), OnDisk(folder)
    read.hold(0)
    held.hold(1)
    (folder / "part-00000.npy").unlink()
    assert torch.equal(held.block(2, 9), read.block(2, 9))
    assert torch.equal(held.take(np.array([11, 0])), read.take(np.array([11, 0])))


def test_a_row_without_features_is_named(embedded):
    with pytest.raises(DataError, match="image 3 of the index has no features"):
        OnDisk(embedded(np.ones((3, 2)), rows=[0, 2, 4]), np.array([2, 3]))


def test_mixed_widths_are_named(embedded):
    a, b = embedded(np.ones((2, 3)), name="a"), embedded(np.ones((2, 4)), name="b")
    with pytest.raises(DataError, match=r"b/part-00000.npy: features of shape \(2, 4\).*one model"):
        OnDisk([a, b])


@pytest.mark.parametrize(("value", "word"), [(np.nan, "is not finite"), (0.0, "is a zero vector")])
def test_rows_without_direction_are_named(embedded, value, word):
    features = np.ones((7, 2), dtype=np.float32)
    features[6] = value
    matrix = OnDisk(embedded(features))
    matrix.block(0, 6)
    with pytest.raises(DataError, match=f"part-00001.npy: row 1 {word}"):
        matrix.block(0, 7)


def test_no_features_at_all(tmp_path):
    with pytest.raises(DataError, match="run the stage embed first"):
        OnDisk(tmp_path)
