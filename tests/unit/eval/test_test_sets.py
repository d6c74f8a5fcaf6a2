# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from opendino.data.datasets import open_dataset
from opendino.errors import ConfigError, DataError
from opendino.eval._data import LabelledConfig
from opendino.eval._test_sets import TestSetsConfig, measure, real_figure


def folder(root, names, each=2):
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (4, 4)).save(root / name / f"{i}.png")
    return root


def test_classes_are_matched_by_name_or_by_a_mapping(tmp_path):
    train = open_dataset(folder(tmp_path / "train", "abcd"))
    shifted = folder(tmp_path / "shifted", "bd")
    foreign = folder(tmp_path / "foreign", ["n1", "n2"])
    np.save(tmp_path / "map.npy", np.array([3, 1]))

    def classify(dataset, what):
        # The first image of each class looks like class b (then d, then c), the second like c (then d, then b).
        rows = torch.arange(len(dataset))
        logits = torch.tensor([[0.0, 3, 1, 2], [0.0, 1, 3, 2]])[rows % 2]
        return logits, rows

    by_name = measure(TestSetsConfig((str(shifted),)), LabelledConfig(), train, 3, classify)
    assert by_name["shifted_top1"] == 25.0  # only the first image of b
    config = TestSetsConfig((str(shifted), str(foreign)), ("", str(tmp_path / "map.npy")))
    both = measure(config, LabelledConfig(), train, 3, classify)
    assert both["shifted_top1"] == 25.0
    # n1 stands for d and n2 for b; c does not compete: d is chosen for second images, b for first ones.
    assert both["foreign_top1"] == 50.0
    np.save(tmp_path / "short.npy", np.array([3]))
    with pytest.raises(DataError, match="maps 1 classes"):
        measure(TestSetsConfig((str(foreign),), (str(tmp_path / "short.npy"),)), LabelledConfig(), train, 3, classify)
    with pytest.raises(DataError, match=r"'n1' .* is not among"):
        measure(TestSetsConfig((str(foreign),)), LabelledConfig(), train, 3, classify)
    with pytest.raises(ConfigError, match="names 1 files for 2 sources"):
        TestSetsConfig(("a", "b"), ("c",))


def test_two_sources_of_one_name_keep_apart(tmp_path):
    train = open_dataset(folder(tmp_path / "train", "ab"))
    sources = tuple(str(folder(tmp_path / place / "test", "ab")) for place in ("x", "y"))
    found = measure(
        TestSetsConfig(sources),
        LabelledConfig(),
        train,
        3,
        lambda d, _: (torch.eye(2)[d.targets], torch.arange(len(d))),
    )
    assert set(found) == {"test0_top1", "test0_mean_per_class", "test1_top1", "test1_mean_per_class"}


def test_right_answers_belong_to_rows(tmp_path):
    val = open_dataset(folder(tmp_path / "val", "a", each=3))
    (tmp_path / "real.json").write_text("[[0], [1], [2, 0]]")
    rows = torch.tensor([0, 2])  # the second image could not be read
    assert real_figure(str(tmp_path / "real.json"), val, torch.tensor([1, 0]), rows) == {"real": 50.0}
    assert real_figure("", val, torch.tensor([1, 0]), rows) == {}
