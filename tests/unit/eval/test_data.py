# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from opendino.errors import ConfigError, DataError
from opendino.eval._data import LabelledConfig, extract_pair, open_pair
from opendino.eval._features import FeatureConfig, extract
from opendino.models.vision_transformer import VisionTransformer


def make(folder, classes, each=2):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (8, 8), (20 * i, 50, 90)).save(folder / name / f"{i}.png")
    return str(folder)


def test_classes_are_matched_by_name_not_by_number(tmp_path):
    config = LabelledConfig(make(tmp_path / "a", ["ant", "bee", "cat"]), make(tmp_path / "b", ["bee", "cat"], each=1))
    pair = open_pair(config)
    assert pair.classes == ("ant", "bee", "cat")
    assert pair.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert pair.val_labels.tolist() == [1, 2]  # its own numbers are 0 and 1


def test_a_class_that_training_lacks(tmp_path):
    config = LabelledConfig(make(tmp_path / "a", ["ant", "bee"]), make(tmp_path / "b", ["bee", "cow", "dog"]))
    with pytest.raises(DataError, match=r"class 'cow' \(2 such\) is not among the 2 classes"):
        open_pair(config)


@pytest.mark.parametrize(
    ("train", "val", "warned"), [("ab", "ab", []), ("ab", "bb", ["held-out"]), ("bb", "bb", ["training", "held-out"])]
)
def test_a_part_of_one_class_is_warned_of(tmp_path, caplog, train, val, warned):
    """As the first rows of a table that is sorted by class."""
    for name, labels in (("train", train), ("val", val)):
        rows = []
        for i, label in enumerate(labels):
            Image.new("RGB", (8, 8), (90 * i, 50, len(name))).save(tmp_path / f"{name}{i}.png")
            rows.append(f"{name}{i}.png,{label}\n")
        (tmp_path / f"{name}.csv").write_text("path,label\n" + "".join(rows))
    config = LabelledConfig(str(tmp_path / "train.csv"), str(tmp_path / "val.csv"))
    pair = open_pair(config)
    told = [record.getMessage() for record in caplog.records]
    assert told == list(pair.notes)
    assert len(told) == len(warned)
    for message, what in zip(told, warned, strict=True):
        assert message.startswith(f"all labels of the 2 {what} images are the same ('b' in ")
        assert message.endswith("sorted by class? take rows at random")
    backbone = VisionTransformer(img_size=8, patch_size=4, embed_dim=64, depth=1, num_heads=1)
    assert extract_pair(backbone, config, FeatureConfig()).notes == pair.notes


def test_parts_that_are_missing_or_the_same(tmp_path):
    with pytest.raises(ConfigError, match=r"data.train is missing"):
        open_pair(LabelledConfig())
    with pytest.raises(ConfigError, match=r"data.val is missing"):
        open_pair(LabelledConfig(train="x"))
    with pytest.raises(ConfigError, match="each image would find itself"):
        open_pair(LabelledConfig("x", "x"))


@pytest.mark.parametrize("spelling", ["{0}/", "{0}/../pics", "{0}/./", "{1}/link", "pics", "pics/"])
def test_one_folder_spelled_twice_is_refused(tmp_path, monkeypatch, spelling):
    folder = make(tmp_path / "pics", ["ant", "bee"])
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.train = .* and data\.val = .* are the same: each image would find"):
        open_pair(LabelledConfig(folder, spelling.format(folder, tmp_path)))
    other = make(tmp_path / "others", ["ant", "bee"])
    assert len(open_pair(LabelledConfig(folder, other)).val) == 4


def test_one_file_under_two_names_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\n")
    (tmp_path / "b.csv").hardlink_to(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match="are the same"):
        open_pair(LabelledConfig(str(tmp_path / "a.csv"), str(tmp_path / "b.csv")))


def test_columns_and_values_are_read_as_the_settings_say(tmp_path):
    """Tables whose other columns would be found first, of images whose values have no range of their own."""
    for name, shift in (("train", 0), ("val", 1)):
        for i in range(2):
            np.save(tmp_path / f"{name}{i}.npy", np.full((8, 8), 100 * i + 10 * shift, np.int16))
        rows = "".join(f"nothing.npy,{name}{i}.npy,7,{'ab'[i]}\n" for i in range(2))
        (tmp_path / f"{name}.csv").write_text(f"path,scan,label,kind\n{rows}")
    pair = open_pair(
        LabelledConfig(
            str(tmp_path / "train.csv"),
            str(tmp_path / "val.csv"),
            path_column="scan",
            label_column="kind",
            value_range=(0.0, 200.0),
        ),
        channels=1,
    )
    assert pair.classes == ("a", "b")
    assert [float(pair.val.image(i).mean()) for i in range(2)] == pytest.approx([0.05, 0.55])


@pytest.mark.parametrize(("orient", "size"), [(True, (4, 8)), (False, (8, 4))])
def test_orientation_is_a_setting(tmp_path, orient, size):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for part in ("a", "b"):
        make(tmp_path / part, ["ant", "bee"], each=1)
        Image.new("RGB", (8, 4)).save(tmp_path / part / "ant" / "0.png", exif=exif)
    pair = open_pair(LabelledConfig(str(tmp_path / "a"), str(tmp_path / "b"), orient=orient))
    assert pair.val.image(0).size == size


def test_images_without_labels(tmp_path):
    labelled = make(tmp_path / "a", ["ant", "bee"])
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (8, 8)).save(flat / "0.png")
    with pytest.raises(DataError, match="flat: has no labels"):
        open_pair(LabelledConfig(labelled, str(flat)))


def test_labels_follow_the_images_that_could_be_read(tmp_path):
    train, val = make(tmp_path / "a", ["ant", "bee"], each=3), make(tmp_path / "b", ["ant", "bee"])
    (tmp_path / "a" / "ant" / "1.png").write_bytes(b"no picture")
    (tmp_path / "b" / "ant" / "0.png").write_bytes(b"no picture")
    backbone = VisionTransformer(img_size=8, patch_size=4, embed_dim=64, depth=1, num_heads=1)
    found = extract_pair(backbone, LabelledConfig(train, val), FeatureConfig())
    assert found.train_labels.tolist() == [0, 0, 1, 1, 1]
    assert found.val_labels.tolist() == [0, 1, 1]
    assert found.train.cls.shape == (5, 64)
    assert found.notes == ("2 images could not be read and were left out",)
    assert found.record["train_images"] == 5
    assert len(found.record["skipped"]) == 2
    assert found.train.rows.tolist() == [0, 2, 3, 4, 5]
    whole = extract(backbone, open_pair(LabelledConfig(train, val)).val, FeatureConfig())
    torch.testing.assert_close(found.val.cls, whole.cls, rtol=0, atol=0)
    assert len(found.val.cls.unique(dim=0)) == 2  # pictures 0 and 1 of "bee" differ, 1 of "ant" equals 1 of "bee"
