# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from opendino.curate._graph import EdgesPart, counts, edges, open_features, parts_for
from opendino.errors import DataError
from opendino.neighbours.exact import SearchConfig


def unit(degrees):
    radians = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def found(tmp_path, folders, selection=None, rows=100, k=3, degrees=11, precision="fp32"):
    (tmp_path / "edges").mkdir()
    search = SearchConfig(precision=precision, device="cpu")
    matrix = open_features(folders, selection)
    for part in range(parts_for(len(matrix), rows)):
        EdgesPart(tmp_path / "edges", folders, selection, k, float(np.cos(np.deg2rad(degrees))), search, rows)(part)
    pairs = {(int(a), int(b)): float(c) for low, high, cosine in edges(tmp_path / "edges")
             for a, b, c in zip(low, high, cosine, strict=True)}  # fmt: skip
    return pairs, counts(tmp_path / "edges")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [2, 100])
def test_edges_by_hand(tmp_path, embedded, rows, precision):
    folder = embedded(unit([0, 90, 10, 180, 95, 20]))
    pairs, _ = found(tmp_path, (folder,), rows=rows, precision=precision)
    assert pairs.keys() == {(0, 2), (1, 4), (2, 5)}
    assert pairs[1, 4] == pytest.approx(np.cos(np.deg2rad(5)), abs=1e-6)


def test_a_row_with_too_many_copies_is_counted(tmp_path, embedded):
    pairs, said = found(tmp_path, (embedded(unit([0, 1, 2, 3, 90])),), k=2)
    assert said["rows_with_all_k"] == 4
    assert {(0, 1), (1, 2), (2, 3)} <= pairs.keys()  # still one chain


def test_a_selection_and_references_stand_below_each_other(tmp_path, embedded):
    pool = embedded(unit([0, 90, 10, 180]), name="pool")
    other = embedded(unit([185, 8]), name="other")
    np.save(tmp_path / "kept.npy", np.array([0, 3]))
    pairs, _ = found(tmp_path, (pool, other), tmp_path / "kept.npy")
    assert pairs.keys() == {(0, 3), (1, 2)}
    stacked = open_features((pool, other), tmp_path / "kept.npy")
    torch.testing.assert_close(stacked.take(np.array([2, 0])), torch.from_numpy(unit([185, 0])))


def test_references_of_another_model(tmp_path, embedded):
    np.save(tmp_path / "kept.npy", np.array([0]))
    with pytest.raises(DataError, match="features of 2 and of 3 numbers"):
        open_features((embedded(np.ones((2, 2)), name="a"), embedded(np.ones((2, 3)), name="b")), tmp_path / "kept.npy")
