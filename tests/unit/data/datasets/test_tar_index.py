# SPDX-License-Identifier: Apache-2.0
import io
import logging
import os
import tarfile

import numpy as np
import pytest

from opendino.data.datasets import _tar_index as module
from opendino.data.datasets import open_dataset
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
    walk = module.walk
    monkeypatch.setattr(module, "walk", lambda path: walks.append(path) or walk(path))
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
    monkeypatch.setattr(module, "walk", None)
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


def add(archive, name, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    vars_of = {"size": member.size} | fields
    for field, value in vars_of.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def test_links_and_devices_are_passed_over_wherever_they_point(tmp_path):
    """Nothing is unpacked, so a member's name is a name and never a path."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "../../up.jpg", b"up")
        add(archive, "s.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "h.jpg", type=tarfile.LNKTYPE, linkname="../../up.jpg")
        add(archive, "d.jpg", type=tarfile.CHRTYPE)
        add(archive, "new\nline.jpg", b"line")
    index = index_of(tmp_path / "a.tar")
    assert [index.names[row] for row in range(len(index.offsets))] == ["../../up.jpg", "new\nline.jpg"]
    assert index.lengths.tolist() == [2, 4]


@pytest.mark.parametrize("size", [10**6, 2**60, -1])
def test_a_member_larger_than_its_tar_ends_the_index(tmp_path, caplog, size):
    """Its header's sum is right: only the size of the tar tells."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "1.jpg", b"good")
        add(archive, "2.jpg", b"")
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[1024 + 124 : 1024 + 136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header = data[1024:1172] + b" " * 8 + data[1180:1536]
    data[1172:1180] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(data)
    with caplog.at_level(logging.WARNING, logger="opendino"):
        assert index_of(tmp_path / "a.tar").lengths.tolist() == [4]
    assert "is damaged behind member" in caplog.text


def test_a_label_that_no_column_holds_is_refused_with_the_tar(make_tar, tmp_path):
    make_tar("a.tar", {"1.png": b"x", "1.cls": str(2**70).encode()})
    with pytest.raises(DataError, match=r"a\.tar: label \d+ is no number of a class"):
        open_dataset(tmp_path / "a.tar")


def test_an_altered_index_is_made_anew(make_tar):
    path, _ = make_tar("a.tar", {"1.png": b"first", "2.png": b"second"})
    right = index_of(path)
    place = path.parent / ".a.tar.index.npz"
    with np.load(place) as kept:
        columns = dict(kept)
    for name, wrong in (("ends", [0, 5, 99]), ("ends", [0, 9, 5]), ("labels", [1]), ("lengths", [5.0, 6.0])):
        np.savez(place, **columns | {name: np.array(wrong)})
        found = index_of(path)
        assert found.lengths.tolist() == right.lengths.tolist()
        assert [found.names[row] for row in range(2)] == ["1.png", "2.png"]
