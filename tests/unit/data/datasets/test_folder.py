# SPDX-License-Identifier: Apache-2.0
import logging
import os

import pytest
from PIL import Image

from opendino.data.datasets.folder import FolderDataset, image_suffixes, scan
from opendino.errors import DataError


def grow(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return FolderDataset(root)


def names(dataset):
    return [str(dataset.read(i).relative_to(dataset.root)) for i in range(len(dataset))]


def test_files_before_folders_each_by_name(tmp_path):
    dataset = grow(tmp_path, "b/2.png", "b/10.png", "a/z/1.jpg", "a/y.jpg", "c.tif")
    assert names(dataset) == ["c.tif", "a/y.jpg", "a/z/1.jpg", "b/10.png", "b/2.png"]


def test_only_images_are_taken(tmp_path):
    dataset = grow(tmp_path, "a.JPG", "b.txt", ".hidden.png", ".git/c.png", "d.npy", "e", "f.pdf", "g.webp", ".png")
    assert names(dataset) == ["a.JPG", "d.npy", "g.webp"]


def test_first_level_folders_are_classes(tmp_path):
    dataset = grow(tmp_path, "dog/x/1.png", "cat/1.png", "dog/2.png")
    assert dataset.classes == ["cat", "dog"]
    assert names(dataset) == ["cat/1.png", "dog/2.png", "dog/x/1.png"]
    assert dataset.targets.tolist() == [0, 1, 1]
    assert dataset.label(2) == 1


@pytest.mark.parametrize(
    "files",
    [
        ("1.png", "2.png"),  # no folder
        ("cat/1.png", "dog/1.png", "3.png"),  # one image outside of the folders
        ("cat/1.png", "cat/2.png"),  # one folder only
        ("train/cat/1.png", "val/cat/2.png", "Test/cat/3.png"),  # splits
        ("cat/1.png", "dog/readme.txt"),  # the second folder has no image
    ],
)
def test_no_labels(tmp_path, files):
    dataset = grow(tmp_path, *files)
    assert dataset.targets is None
    assert dataset.classes == []


def test_links_are_followed_but_not_in_circles(tmp_path):
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "1.png").write_bytes(b"")
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "link").symlink_to(real)
    (root / "a" / "up").symlink_to(root)
    (real / "back").symlink_to(real)
    assert list(scan(str(root))) == ["a/link/1.png"]


def test_a_name_that_is_no_unicode(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    assert FolderDataset(tmp_path).read(0).exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "the folder is empty"),
        (("a.txt", "b/c.txt", "d"), r"no image among its files \(2 .txt, 1 without suffix\)"),
        (("data/x.parquet",), "name the folder that holds the Parquet files"),
    ],
)
def test_a_folder_without_images(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=message):
        FolderDataset(tmp_path)


def test_a_folder_that_cannot_be_listed(tmp_path):
    with pytest.raises(DataError, match=r"gone.*cannot be listed"):
        FolderDataset(tmp_path / "gone")


def test_common_formats_are_known():
    assert {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".npy", ".avif"} <= image_suffixes()
    assert not {".pdf", ".txt", ".eps", ".mpg"} & image_suffixes()


def test_images_are_named_by_their_path(image_folder):
    dataset = FolderDataset(image_folder)
    assert dataset.identify(0) == f"{image_folder}/cat/0.png"
    assert dataset.image(0).size == (50, 40)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("train", "val"), "holds val beside train, and the images of all of them are used; give {0}/train to leave"),
        (("Train", "test", "val"), "holds test and val beside Train, and the images of all of them are used; give {0}"),
        (("train", "val", "more"), "holds val beside train"),
        (("train", "bus"), ""),  # vehicles
        (("val", "test"), ""),
        (("cat", "dog"), ""),
    ],
)
def test_held_out_images_among_those_to_be_used_are_told(tmp_path, encode, caplog, parts, said):
    for part in parts:
        (tmp_path / part / "cat").mkdir(parents=True)
        (tmp_path / part / "cat" / "1.png").write_bytes(encode(Image.new("L", (4, 4))))
    logging.getLogger("opendino").propagate = True
    FolderDataset(tmp_path)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == bool(said)
    assert all(said.format(tmp_path) in line for line in warned)
