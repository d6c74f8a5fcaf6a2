# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score, top_k_accuracy_score

from opendino.errors import DataError
from opendino.eval import _metrics


def test_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 8, 300)
    labels[labels == 5] = 2  # uneven classes, one empty
    logits = rng.normal(size=(300, 8)) + 2 * np.eye(8)[labels]
    found = _metrics.accuracies(torch.from_numpy(logits), torch.from_numpy(labels))
    for k in (1, 5):
        wanted = top_k_accuracy_score(labels, logits, k=k, labels=range(8))
        assert found[f"top{k}"] == pytest.approx(100 * wanted)
    wanted = recall_score(labels, logits.argmax(1), labels=np.unique(labels), average="macro")
    assert found["mean_per_class"] == pytest.approx(100 * wanted)
    each = _metrics.per_class(torch.from_numpy(logits.argmax(1)), torch.from_numpy(labels))
    assert 5 not in each
    assert np.mean(list(each.values())) == pytest.approx(100 * wanted)
    assert "top5" not in _metrics.accuracies(torch.randn(4, 5), torch.tensor([0, 1, 2, 3]))


def test_several_right_answers_worked_by_hand():
    answers = torch.tensor([[1, -1], [0, 2], [-1, -1], [3, -1]])
    # Hit, hit, not counted, miss: two of three.
    assert _metrics.real(torch.tensor([1, 2, 7, 0]), answers) == pytest.approx(200 / 3)


def test_answers_follow_the_number_of_the_image(tmp_path):
    file = tmp_path / "real.json"
    file.write_text(json.dumps([[5], [], [1, 2]]))
    names = ["a/ILSVRC2012_val_00000003.JPEG", "b/ILSVRC2012_val_00000001.JPEG"]
    assert _metrics.read_real(file, names).tolist() == [[1, 2], [5, -1]]
    assert _metrics.read_real(file, ["x", "y"]).tolist() == [[5], [-1]]
    with pytest.raises(DataError, match="has 3 lists of answers for 4 images"):
        _metrics.read_real(file, list("wxyz"))
    file.write_text("{")
    with pytest.raises(DataError, match="not a JSON list of lists"):
        _metrics.read_real(file, ["x"])


def test_class_mappings_are_checked(tmp_path):
    np.save(tmp_path / "m.npy", np.array([4, 0, 2]))
    assert _metrics.read_class_mapping(tmp_path / "m.npy", 5).tolist() == [4, 0, 2]
    with pytest.raises(DataError, match="names class 4"):
        _metrics.read_class_mapping(tmp_path / "m.npy", 4)
    np.save(tmp_path / "f.npy", np.array([0.5]))
    with pytest.raises(DataError, match="one integer a class was wanted"):
        _metrics.read_class_mapping(tmp_path / "f.npy", 4)
    with pytest.raises(DataError, match="cannot be read"):
        _metrics.read_class_mapping(tmp_path / "none.npy", 4)
