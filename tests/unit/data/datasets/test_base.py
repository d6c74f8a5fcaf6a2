# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest

from opendino.data.datasets import DecodeOptions, ImageDataset, open_dataset
from opendino.errors import DataError

DEFAULT = DecodeOptions()


class Memory(ImageDataset):
    """The smallest data set that there can be: four images in a list."""

    def __init__(self, cells, options=DEFAULT, targets=None):
        self.cells, self.name, self.options, self.targets, self.classes = cells, "memory", options, targets, []

    def __len__(self):
        return len(self.cells)

    def read(self, index):
        return self.cells[index]

    def identify(self, index):
        return f"memory row {index}"


def test_an_image_is_decoded_as_the_options_say(encode, oracle):
    dataset = Memory([encode(oracle.small())], DecodeOptions(channels=1))
    assert dataset.image(0).mode == "L"
    deep = np.full((3, 4), 3000, dtype=np.uint16)
    from PIL import Image

    dataset = Memory([encode(Image.fromarray(deep))], DecodeOptions(channels=1, value_range=(0.0, 6000.0)))
    assert dataset.image(0)[0, 0, 0] == pytest.approx(0.5)


def test_an_error_names_the_image(encode, oracle):
    with pytest.raises(DataError, match=r"^memory row 1: "):
        Memory([b"", b"rubbish"]).image(1)


def test_labels_are_optional():
    assert Memory([b""]).label(0) is None
    assert Memory([b"", b""], targets=np.array([4, 9])).label(1) == 9


def test_the_door_tells_kinds_apart(image_folder, tmp_path):
    paths = sorted(image_folder.rglob("*.png"))
    (tmp_path / "list.txt").write_text("\n".join(map(str, paths)))
    (tmp_path / "table.csv").write_text("path,label\n" + "\n".join(f"{path},a" for path in paths))
    kinds = [
        type(open_dataset(source)).__name__ for source in (image_folder, tmp_path / "list.txt", tmp_path / "table.csv")
    ]
    assert kinds == ["FolderDataset", "FileListDataset", "ManifestDataset"]
    assert open_dataset(str(image_folder), channels=1, value_range=(0.0, 2.0)).options == DecodeOptions(
        1, True, (0.0, 2.0)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "there is no such file or folder"),
        ("file.doc", "cannot be opened as a data set"),
        ("no-*.parquet", "no"),
    ],
)
def test_sources_that_are_none(tmp_path, name, message):
    (tmp_path / "file.doc").write_text("text")
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / name)


def test_channels_must_be_positive(image_folder):
    with pytest.raises(DataError, match="0 channels were asked for"):
        open_dataset(image_folder, channels=0)


def test_a_file_is_read_from_a_path(image_folder):
    dataset = open_dataset(image_folder)
    assert isinstance(dataset.read(0), Path)
    assert dataset.image(0).mode == "RGB"
