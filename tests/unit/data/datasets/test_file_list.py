# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.data.datasets.file_list import FileListDataset
from opendino.errors import DataError


def test_paths_are_relative_to_the_list_or_absolute(image_folder):
    source = image_folder / "list.txt"
    source.write_bytes(f"\xef\xbb\xbfcat/0.png\r\n\r\n  dog/1.png \n{image_folder}/cat/2.png".encode("latin-1"))
    dataset = FileListDataset(source)
    assert [dataset.read(i) for i in range(3)] == [
        image_folder / name for name in ("cat/0.png", "dog/1.png", "cat/2.png")
    ]
    assert len(dataset) == 3
    assert dataset.targets is None
    assert dataset.image(1).size == (49, 41)
    assert dataset.identify(0).endswith("cat/0.png")


def test_single_missing_files_are_found_out_later(image_folder):
    (image_folder / "list.txt").write_text("gone.png\ncat/0.png\n")
    dataset = FileListDataset(image_folder / "list.txt")
    with pytest.raises(DataError, match=r"gone\.png"):
        dataset.image(0)


@pytest.mark.parametrize(
    ("text", "message"), [(" \n\n", "the list is empty"), ("a.png\nb.png", "none of its first 2 files")]
)
def test_lists_of_nothing(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        FileListDataset(tmp_path / "list.txt")
