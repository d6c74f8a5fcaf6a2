# SPDX-License-Identifier: Apache-2.0
import pickle
import tarfile

import numpy as np
import pytest
import torch

from opendino.data.augment import CropsConfig
from opendino.data.datasets import _handles, open_dataset
from opendino.data.datasets.tars import TarDataset, opened_braces, tars_of
from opendino.data.loaders import pretrain_loader
from opendino.data.masking import MaskConfig
from opendino.errors import DataError


@pytest.fixture
def shards(make_tar, png):
    """Three tars of four pictures each, with labels, and what is in them."""
    content = {}
    for shard in range(3):
        files = {f"{shard}{row}.png": png(10 * shard + row) for row in range(4)}
        content |= files
        make_tar(f"train-{shard:03d}.tar", files | {f"{shard}{row}.cls": str(row % 2).encode() for row in range(4)})
    return content


def test_images_are_those_of_the_members_in_order(shards, tmp_path):
    dataset = open_dataset(tmp_path / "train-{000..002}.tar")
    assert isinstance(dataset, TarDataset)
    assert [dataset.read(row) for row in range(12)] == list(shards.values())
    assert dataset.identify(5) == f"{tmp_path}/train-001.tar/11.png"
    assert dataset.targets.tolist() == [0, 1] * 6
    assert dataset.classes == ["0", "1"]
    assert dataset.image(3).size == (16, 16)
    assert open_dataset(tmp_path, label_column="none").targets is None


@pytest.mark.parametrize("source", ["train-*.tar", "train-{000,001,002}.tar", ""])
def test_every_way_to_name_them(shards, tmp_path, source):
    assert len(open_dataset(f"{tmp_path}/{source}")) == 12
    assert len(open_dataset(tmp_path / "train-001.tar")) == 4


def test_a_folder_of_unpacked_pictures_beside_their_tar_is_a_folder(shards, tmp_path, png):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").write_bytes(png(1))
    assert len(open_dataset(tmp_path)) == 1


def test_it_travels_to_another_process_and_keeps_few_files_open(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(_handles, "_MOST_OPEN", 2)
    dataset = open_dataset(tmp_path)
    again = pickle.loads(pickle.dumps(dataset))
    for row in np.random.default_rng(0).permutation(12).tolist():
        assert dataset.read(row) == again.read(row) == list(shards.values())[row]
    assert len(dataset._opened._opened) == 2


def batches(dataset, workers, start, count):
    crops = CropsConfig(global_size=8, local_size=4, local_number=1, blur="none")
    feed = pretrain_loader(dataset, crops, MaskConfig(min_block=1), 4, 4, 7, start, workers)
    found = [next(feed) for _ in range(count)]
    feed.close()
    return found


def test_batches_are_the_same_with_two_workers_and_behind_a_resume(shards, tmp_path):
    """One picture is damaged: it is replaced, and counted, the same way."""
    make_damaged(tmp_path / "train-001.tar")
    dataset = open_dataset(tmp_path)
    alone, many, resumed = (batches(dataset, *how) for how in ((0, 0, 6), (2, 0, 6), (2, 3, 3)))
    for one, other in zip([*alone, *alone[3:]], [*many, *resumed], strict=True):
        assert torch.equal(one.global_crops, other.global_crops)
        assert torch.equal(one.ids, other.ids)
        assert one.skipped == other.skipped
    skipped = [bad for batch in alone for bad in batch.skipped]
    assert {bad.index for bad in skipped} == {4}
    assert f"{tmp_path}/train-001.tar/10.png" in skipped[0].reason
    # An epoch of three steps has each of the others once.
    first = torch.cat([batch.ids for batch in alone[:3]]).tolist()
    assert set(range(12)) - {4} <= set(first)


def make_damaged(path):
    with tarfile.open(path) as archive:
        member = archive.getmembers()[0]
    content = bytearray(path.read_bytes())
    content[member.offset_data : member.offset_data + member.size] = b"x" * member.size
    path.write_bytes(content)


def test_a_tar_cut_short_is_said_where_it_is_read(shards, tmp_path):
    dataset = open_dataset(tmp_path)
    path = tmp_path / "train-002.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"train-002\.tar/20\.png: 88 of \d+ bytes are there"):
        dataset.read(8)
    path.unlink()
    with pytest.raises(DataError, match=r"train-002\.tar/21\.png: cannot be read \(No such file"):
        open_dataset_without(dataset).read(9)


def open_dataset_without(dataset):
    dataset._opened = _handles.Handles()
    return dataset


def test_what_cannot_be_used_is_said(make_tar, png, tmp_path):
    make_tar("a-1.tar", {"notes.txt": b"none"})
    with pytest.raises(DataError, match="there is no image in 1 tars"):
        open_dataset(tmp_path / "a-1.tar")
    make_tar("b-1.tar", {"1.png": png(1), "1.cls": b"0", "2.png": png(2)})
    with pytest.raises(DataError, match=r"1 of 2 images have no \.cls member.*label_column=none"):
        open_dataset(tmp_path / "b-1.tar")
    with pytest.raises(DataError, match=r"2 of 3 files are missing, such as .*b-0\.tar"):
        open_dataset(f"{tmp_path}/b-{{0..2}}.tar")
    with pytest.raises(DataError, match="no tar fits this pattern"):
        tars_of(f"{tmp_path}/c-*.tar")


def test_braces_are_opened_as_a_shell_does():
    assert opened_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert opened_braces("{x,y}/{1..0}.tar") == ["x/1.tar", "x/0.tar", "y/1.tar", "y/0.tar"]
    assert opened_braces("plain.tar") == ["plain.tar"]
