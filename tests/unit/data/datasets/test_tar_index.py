# SPDX-License-Identifier: Apache-2.0
import logging
import os

import numpy as np
import pytest

from opendino.data.datasets import _tar_index as module
from opendino.data.datasets._tar_index import NO_LABEL, index_of, split_name
from opendino.errors import DataError


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENDINO_CACHE", str(tmp_path / "cache"))


def test_every_image_stands_where_the_index_says(make_tar):
    path, content = make_tar(
        "a.tar", {"x/1.png": b"first", "x/1.cls": b"3", "2.seg.JPG": b"second!", "notes.txt": b"no"}
    )
    index = index_of(path)
    whole = path.read_bytes()
    assert [index.names[row] for row in range(2)] == ["x/1.png", "2.seg.JPG"]
    for row in range(2):
        start = index.offsets[row]
        assert whole[start : start + index.lengths[row]] == content[index.names[row]]
    assert index.labels.tolist() == [3, NO_LABEL]


def test_an_index_is_kept_and_made_anew_when_the_tar_changes(make_tar, monkeypatch):
    path, _ = make_tar("a.tar", {"1.png": b"first"})
    index_of(path)
    assert (path.parent / ".a.tar.index.npz").is_file()
    walks = []
    walk = module._walk
    monkeypatch.setattr(module, "_walk", lambda path: walks.append(path) or walk(path))
    assert index_of(path).lengths.tolist() == [5]
    assert not walks
    make_tar("a.tar", {"1.png": b"other length", "2.png": b"more"})
    assert index_of(path).lengths.tolist() == [12, 4]
    (path.parent / ".a.tar.index.npz").write_bytes(b"PK damaged")
    assert index_of(path).lengths.tolist() == [12, 4]
    assert len(walks) == 2


@pytest.mark.parametrize("other", [{"2.png": b"first", "1.png": b"second!"}, {"1.png": b"abcdefg", "2.png": b"other"}])
def test_another_tar_of_the_same_size_and_time_has_an_index_of_its_own(make_tar, other):
    before, long = {"1.png": b"first", "2.png": b"second!"}, {"d" * 90 + f"/{n}.png": b"x" * n for n in (1, 2, 3)}
    path, _ = make_tar("a.tar", {**before, **long, "\u00e9.png": b"last"})
    known = path.stat()
    first = index_of(path)
    assert module._agrees(path, first), "long names and other letters too"
    make_tar("a.tar", {**other, **long, "\u00e9.png": b"last"})
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert path.stat().st_size == known.st_size
    second = index_of(path)
    assert [second.names[row] for row in range(2)] == list(other)
    assert second.lengths[:2].tolist() == [len(content) for content in other.values()]


def test_where_the_folder_cannot_be_written_it_is_kept_elsewhere(make_tar, monkeypatch, tmp_path, caplog):
    path, _ = make_tar("a.tar", {"1.png": b"first"})
    write = module.write_whole

    def refuse(place, *given, **more):
        if place.parent == path.parent:
            raise DataError("read-only")
        return write(place, *given, **more)

    monkeypatch.setattr(module, "write_whole", refuse)
    index_of(path)
    assert len(list((tmp_path / "cache" / "tars").iterdir())) == 1
    monkeypatch.setattr(module, "_walk", None)
    assert index_of(path).lengths.tolist() == [5]
    monkeypatch.undo()
    monkeypatch.setattr(module, "write_whole", lambda *_, **__: (_ for _ in ()).throw(DataError("full")))
    os.utime(path, ns=(0, 0))
    with caplog.at_level(logging.WARNING):
        assert len(index_of(path).lengths) == 1
    assert "could not be kept" in caplog.text


def test_what_is_no_tar_or_damaged_is_said(make_tar, tmp_path, caplog):
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"b\.tar: cannot be read as a plain tar"):
        index_of(tmp_path / "b.tar")
    with pytest.raises(DataError, match=r"c\.tar: cannot be read \(No such file"):
        index_of(tmp_path / "c.tar")
    path, _ = make_tar("d.tar", {"1.png": b"x" * 600, "2.png": b"y" * 600})
    path.write_bytes(path.read_bytes()[: 1024 + 1024])  # in the middle of the second header's data
    with caplog.at_level(logging.WARNING):
        index = index_of(path)
    assert index.lengths[0] == 600
    assert np.array_equal(index.offsets[:1], [512])
    assert "is damaged behind member" in caplog.text


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a/b.c/0001.seg.png", ("a/b.c/0001", ".", "seg.png")), ("0001", ("0001", "", "")), ("x.cls", ("x", ".", "cls"))],
)
def test_names_are_split_at_the_first_dot_of_the_file(name, parts):
    assert split_name(name) == parts
