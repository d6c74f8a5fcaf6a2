# SPDX-License-Identifier: Apache-2.0
"""Folders laid out as `datasets` 2 to 4 write them, see docs/how-to/inputs.md; that library is not needed."""

import json
import pickle

import pyarrow as pa
import pytest

from opendino.data.datasets import open_dataset
from opendino.data.datasets.arrow import ArrowDataset
from opendino.errors import DataError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def save(folder, shards, names=("cat", "dog"), **state):
    """Shards of rows (image cell, label), each shard written in batches of two rows."""
    folder.mkdir(parents=True)
    files = []
    for number, rows in enumerate(shards):
        files.append({"filename": f"data-{number:05d}-of-{len(shards):05d}.arrow"})
        schema = pa.schema([("image", IMAGE), ("label", pa.int64())])
        with pa.OSFile(str(folder / files[-1]["filename"]), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for first in range(0, len(rows), 2):
                images, labels = zip(*rows[first : first + 2], strict=True)
                writer.write_batch(
                    pa.record_batch([pa.array(images, IMAGE), pa.array(labels, pa.int64())], schema=schema)
                )
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train", **state}))
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


@pytest.fixture
def saved(tmp_path, png):
    rows = [({"bytes": png(row), "path": None}, row % 2) for row in range(7)]
    return save(tmp_path / "saved", [rows[:3], rows[3:]]), rows


def test_rows_are_read_across_batches_and_files(saved):
    folder, rows = saved
    dataset = open_dataset(folder)
    assert isinstance(dataset, ArrowDataset)
    assert [dataset.read(row) for row in range(7)] == [cell["bytes"] for cell, _ in rows]
    assert dataset.targets.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert dataset.classes == ["cat", "dog"]
    assert dataset.identify(4) == f"{folder} row 4"
    assert dataset.image(2).size == (16, 16)
    assert open_dataset(folder, label_column="none").targets is None
    with pytest.raises(IndexError, match="row 7 of 7"):
        dataset.read(7)


def test_it_travels_without_its_bytes(saved):
    folder, rows = saved
    dataset = open_dataset(folder)
    sent = pickle.dumps(dataset)
    assert len(sent) < 2000
    assert pickle.loads(sent).read(6) == rows[6][0]["bytes"]


def test_a_row_may_hold_a_path_or_nothing(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png(1))
    cells = [{"bytes": None, "path": str(tmp_path / "a.png")}, {"bytes": None, "path": None}, None]
    dataset = open_dataset(save(tmp_path / "saved", [[(cell, 0) for cell in cells]]))
    assert dataset.image(0).size == (16, 16)
    for row in (1, 2):
        with pytest.raises(DataError, match=f"saved row {row}: the row has no image"):
            dataset.read(row)


def test_what_cannot_be_used_is_said(saved, tmp_path, png):
    folder, rows = saved
    (tmp_path / "several" / "train").mkdir(parents=True)
    (tmp_path / "several" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"holds the parts train, test; name one of them, such as .*several/train"):
        open_dataset(tmp_path / "several")
    with pytest.raises(DataError, match=r"flatten_indices\(\)"):
        open_dataset(save(tmp_path / "chosen", [rows], _indices_data_files=[{"filename": "indices.arrow"}]))
    with pytest.raises(DataError, match=r"cannot be read as Arrow|Arrow"):
        (folder / "data-00001-of-00002.arrow").write_bytes(b"nothing of the kind")
        open_dataset(folder)
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match="No such file"):
        open_dataset(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a saved data set"):
        open_dataset(folder)
