# SPDX-License-Identifier: Apache-2.0
import json
import logging
import pickle
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opendino.data.datasets import open_dataset, parquet
from opendino.errors import DataError


@pytest.fixture
def cells(oracle, encode):
    """Seven encoded pictures, the n-th of 10 + n pixels height."""
    return [encode(oracle.picture("RGB", 10 + n, 12)) for n in range(7)]


def write(path, cells, group=3, **columns):
    pq.write_table(pa.table({"image": pa.array(cells, pa.binary()), **columns}), path, row_group_size=group)
    return path


def heights(dataset, order):
    return [dataset.image(i).height - 10 for i in order]


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_rows_are_read_in_any_order(tmp_path, cells, monkeypatch, limit):
    """In memory, and with a cache that holds one row group at a time."""
    monkeypatch.setattr(parquet, "IN_MEMORY", limit)
    monkeypatch.setattr(parquet, "CACHE", 0)
    dataset = open_dataset(write(tmp_path / "a.parquet", cells))
    order = [6, 0, 3, 5, 2, 2, 6, 1, 4]
    assert heights(dataset, order) == order
    assert [dataset.read(i) for i in range(7)] == cells
    assert len(dataset._cache) == (3 if limit else 1)
    with pytest.raises(IndexError):
        dataset.read(7)


class Slow(OrderedDict):
    """A cache that lets other threads go on as soon as something is in it."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        time.sleep(2e-3)


def test_threads_read_each_row_group_once_and_lose_none(tmp_path, cells, monkeypatch):
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    dataset = open_dataset(write(tmp_path / "a.parquet", cells, group=7))
    reads, read = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda *a, **k: reads.append(time.sleep(2e-2)) or read(*a, **k)
    )
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(dataset.read, range(7))) == cells
    assert len(reads) == 1
    monkeypatch.undo()
    dataset = open_dataset(write(tmp_path / "b.parquet", cells, group=1))
    dataset._cache, dataset._limit = Slow(), 0  # one group at a time: threads push out what others have just read
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: dataset.read(n % 7), range(35))) == cells * 5
    assert pickle.loads(pickle.dumps(dataset)).read(3) == cells[3]


def test_the_cache_keeps_what_was_used_last(tmp_path, cells, monkeypatch):
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    dataset = open_dataset(write(tmp_path / "a.parquet", cells, group=1))
    dataset._limit = sum(map(len, cells[:3])) + 200
    for index in (0, 1, 0, 2, 3):
        dataset.read(index)
    assert 1 not in dataset._cache
    assert 3 in dataset._cache


def test_labels_names_and_ids(tmp_path, cells):
    columns = {"id": [f"i{n}" for n in range(7)], "label": [0, 2, 1, 0, 2, 1, 0], "label_name": list("acbacba")}
    dataset = open_dataset(write(tmp_path / "a.parquet", cells, **columns))
    assert dataset.targets.tolist() == columns["label"]
    assert dataset.targets.dtype == np.int64
    assert dataset.classes == ["a", "b", "c"]
    assert dataset.identify(4) == f"{tmp_path}/a.parquet row 4 (id i4)"
    assert open_dataset(tmp_path / "a.parquet", label_column="label_name").classes == ["a", "b", "c"]
    assert open_dataset(tmp_path / "a.parquet", label_column="none").targets is None


def test_hugging_faces_struct_and_class_names(tmp_path, cells):
    image = pa.array(
        [{"bytes": cell, "path": None} for cell in cells], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": image, "label": [0, 1, 1, 0, 1, 0, 1]})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "a.parquet", row_group_size=2
    )
    dataset = open_dataset(tmp_path / "a.parquet")
    assert heights(dataset, [5, 0, 6]) == [5, 0, 6]
    assert dataset.classes == ["cat", "dog"]


@pytest.mark.parametrize("pattern", ["", "train-*.parquet"])
def test_shards_are_one_data_set_in_the_order_of_their_names(tmp_path, cells, pattern):
    write(tmp_path / "train-1.parquet", cells[4:], label=[1, 0, 1])
    write(tmp_path / "train-0.parquet", cells[:4], label=[0, 0, 1, 1])
    dataset = open_dataset(tmp_path / pattern if pattern else tmp_path)
    assert heights(dataset, range(7)) == list(range(7))
    assert dataset.targets.tolist() == [0, 0, 1, 1, 1, 0, 1]
    assert dataset.identify(5).endswith("train-1.parquet row 1")


def test_files_of_different_columns_are_no_shards(tmp_path, cells):
    write(tmp_path / "a.parquet", cells)
    write(tmp_path / "b.parquet", cells, label=[0] * 7)
    with pytest.raises(DataError, match=r"a.parquet and b.parquet have different columns.*pattern"):
        open_dataset(tmp_path)


def test_an_empty_cell_is_the_fault_of_its_row(tmp_path, cells):
    dataset = open_dataset(write(tmp_path / "a.parquet", [cells[0], None, cells[2]]))
    with pytest.raises(DataError, match=r"a\.parquet row 1: "):
        dataset.image(1)
    assert heights(dataset, [2]) == [2]


def test_the_column_can_be_named(tmp_path, cells):
    table = pa.table(
        {"left": pa.array(cells, pa.binary()), "right": pa.array(cells[::-1], pa.large_binary()), "n": range(7)}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="columns left, right; name the images' one with image_column"):
        open_dataset(tmp_path / "a.parquet")
    assert heights(open_dataset(tmp_path / "a.parquet", image_column="right"), [0, 6]) == [6, 0]
    with pytest.raises(DataError, match="column 'n' is of type int64"):
        open_dataset(tmp_path / "a.parquet", image_column="n")


@pytest.mark.parametrize("content", [b"", b"PAR1 rubbish PAR1"])
def test_files_that_are_no_parquet(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_dataset(tmp_path / "a.parquet")


def test_no_rows_are_no_data_set(tmp_path):
    with pytest.raises(DataError, match="has no rows"):
        open_dataset(write(tmp_path / "a.parquet", []))


def test_a_forked_reader_reads_the_same(tmp_path, cells, monkeypatch):
    import multiprocessing

    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    dataset = open_dataset(write(tmp_path / "a.parquet", cells))
    dataset.read(0)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(dataset.read, range(7)) == cells


@pytest.mark.parametrize(
    ("name", "rows", "classes"),
    [("cifar10-test", 10_000, 10), ("tinyimagenet100-val", 5_000, 100), ("photos", 250, 250), ("camvid-val", 101, 0)],
)
def test_real_files(real_data, name, rows, classes):
    dataset = open_dataset(real_data / f"{name}.parquet")
    assert len(dataset) == rows
    assert len(dataset.classes) == classes
    if classes:
        counts = np.bincount(dataset.targets, minlength=classes)
        assert (counts == rows // classes).all()
    assert dataset.image(rows - 1).mode == "RGB"


def test_every_real_photograph_is_decoded(real_data):
    dataset = open_dataset(real_data / "photos.parquet")
    sizes = [dataset.image(i).size for i in range(0, len(dataset), 7)]
    assert min(min(size) for size in sizes) >= 90


def test_the_whole_test_folder_is_not_one_data_set(real_data):
    with pytest.raises(DataError, match="different columns"):
        open_dataset(real_data)


def test_held_out_files_among_those_to_be_used_are_told(tmp_path, cells, caplog):
    logging.getLogger("opendino").propagate = True
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        write(tmp_path / f"{name}.parquet", cells)
    assert len(open_dataset(tmp_path)) == 14
    (warned,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    pattern = f"{tmp_path}/train*.parquet"
    assert f"holds test beside train, and the images of all of them are used; give {pattern} to leave" in warned
    caplog.clear()
    assert len(open_dataset(pattern)) == 7
    assert not caplog.records


def test_damage_anywhere_in_a_file_is_an_error_of_data(tmp_path, cells):
    """Also where the file was opened before it was damaged: a row group is read when an image of it is wanted."""
    page = pq.ParquetFile(write(tmp_path / "a.parquet", cells)).metadata.row_group(0).column(0).data_page_offset
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:page] + b"\xff" * 16 + data[page + 16 :])
    with pytest.raises(DataError, match=r"a\.parquet: row group 0 cannot be read"):
        open_dataset(tmp_path / "a.parquet")
