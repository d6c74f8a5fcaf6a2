# SPDX-License-Identifier: Apache-2.0
import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opendino.data.datasets import open_dataset
from opendino.data.datasets.pointers import PointerDataset, is_pointers, with_image_column
from opendino.errors import DataError


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def places(tmp_path):
    """The same three kinds of places as in the table of the module, and how to point at what is there."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "7.png").write_bytes(png(7))
    pq.write_table(pa.table({"image": [png(8), png(9)], "other": [b"", b""]}), tmp_path / "x.parquet")
    with tarfile.open(tmp_path / "y.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(png(10))
        archive.addfile(member, io.BytesIO(png(10)))
    with tarfile.open(tmp_path / "y.tar") as archive:
        member = archive.getmember("a.png")
    return {
        "source": [str(tmp_path / "folder"), "x.parquet", "x.parquet", "y.tar"],
        "key": ["7.png", "1", "0", f"{member.offset_data}+{member.size} a.png"],
    }


def write(path, columns):
    pq.write_table(pa.table(columns), path)
    return path


def reds(images):
    return [images.image(row).getpixel((0, 0))[0] for row in range(len(images))]


def test_every_kind_of_place(tmp_path, places):
    schema = with_image_column(pa.table(places).schema, "image")
    pq.write_table(pa.table(places).cast(schema), tmp_path / "m.parquet")
    images = open_dataset(tmp_path / "m.parquet")
    assert isinstance(images, PointerDataset)
    assert reds(images) == [7, 9, 8, 10]
    assert images.identify(1).endswith("x.parquet/1")
    assert images.targets is None


def test_weights_repeat_images_and_labels(tmp_path, places):
    path = write(tmp_path / "m.parquet", places | {"weight": [2, 0, 0, 1], "label": ["b", "a", "a", "c"]})
    images = open_dataset(path, image_column="image")
    assert reds(images) == [7, 7, 10]
    assert [images.classes[label] for label in images.targets] == ["b", "b", "c"]
    assert open_dataset(path, label_column="none").targets is None


def test_what_is_gone_is_named(tmp_path, places):
    path = write(tmp_path / "m.parquet", places | {"key": ["none.png", "5", "0", "512+99999999 a.png"]})
    images = open_dataset(path, image_column="image")
    with pytest.raises(DataError, match=r"folder/none\.png"):
        images.image(0)
    for row in (1, 3):
        with pytest.raises(DataError, match="was the file moved or changed"):
            images.image(row)


def test_bad_manifests(tmp_path, places):
    with pytest.raises(DataError, match="has no rows"):
        open_dataset(write(tmp_path / "m.parquet", {"source": pa.array([], "str"), "key": pa.array([], "str")}))
    with pytest.raises(DataError, match="0 or more, not all 0"):
        open_dataset(write(tmp_path / "m.parquet", places | {"weight": [0, 0, 0, 0]}))
    assert not is_pointers(tmp_path / "x.parquet")
    assert not is_pointers(tmp_path / "y.tar")


def test_open_files_do_not_travel(places, tmp_path):
    images = open_dataset(write(tmp_path / "m.parquet", places), image_column="image")
    images.read(3)
    assert images.__getstate__()["_opened"] == {}


@pytest.mark.parametrize("key", [f"{2**70}+1", f"0+{2**62}", "-5+3", "3+-1", "a+b", ""])
def test_a_key_beyond_its_tar_is_said_before_memory_is_spent(places, tmp_path, key):
    images = open_dataset(write(tmp_path / "m.parquet", {"source": ["y.tar"], "key": [key]}))
    with pytest.raises(DataError, match="cannot be read"):
        images.read(0)


@pytest.mark.parametrize(
    "columns",
    [
        {"source": ["y.tar", None], "key": ["0+1", "0+1"]},
        {"source": [1], "key": ["0+1"]},
        {"source": ["y.tar"], "key": ["0+1"], "weight": [None]},
        {"source": ["y.tar"], "key": ["0+1"], "weight": [2**62]},
        {"source": ["y.tar"], "key": ["0+1"], "weight": [0.5]},
    ],
)
def test_columns_that_are_no_manifest(places, tmp_path, columns):
    with pytest.raises(DataError, match=r"m\.parquet: "):
        open_dataset(write(tmp_path / "m.parquet", columns))
