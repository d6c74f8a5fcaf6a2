# SPDX-License-Identifier: Apache-2.0
import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opendino import files
from opendino.data import garments
from opendino.errors import CheckpointError, ConfigError, DataError, OpendinoError
from opendino.eval._results import Results
from opendino.files import write_whole
from opendino.logs import JsonLines
from opendino.view import report


def test_a_file_takes_the_place_of_the_earlier_one(tmp_path):
    path = tmp_path / "deep" / "x.json"
    assert write_whole(path, "one") == path
    write_whole(path, "two", durable=True)
    write_whole(path, lambda partial: partial.write_bytes(partial.read_bytes() if partial.exists() else b"three"))
    assert path.read_bytes() == b"three"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_the_file_is_whole_before_it_has_its_name(tmp_path):
    path, seen = tmp_path / "x.txt", []
    path.write_text("old")
    write_whole(path, lambda partial: (partial.write_text("new"), seen.append(path.read_text())))
    assert seen == ["old"]
    assert path.read_text() == "new"


@pytest.mark.parametrize("kind", [CheckpointError, DataError])
def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(tmp_path, kind):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def half(partial):
        partial.write_text("ha")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(kind, match=r"x\.txt: could not be written \(No space left on device\); make room and give"):
        write_whole(path, half, error=kind)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


def test_a_place_is_tried_without_a_trace(tmp_path, monkeypatch):
    files.check_place(tmp_path / "not" / "yet" / "there")
    files.check_place(tmp_path)
    monkeypatch.chdir(tmp_path)
    files.check_place(Path("here"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"cannot be written .*; give a shorter name"):
        files.check_place(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("number", "wanted"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "name another folder"), (errno.EDQUOT, "make room")],
)
def test_a_place_that_takes_nothing(tmp_path, monkeypatch, number, wanted):
    def no(dir):
        assert dir == tmp_path
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", no)
    with pytest.raises(ConfigError, match=f"^out = x cannot be written .*; {wanted}"):
        files.check_place(tmp_path / "deep" / "x", "out = x")


def test_a_place_without_room_for_a_page(tmp_path):
    """The nameless file is truly written: a limit on sizes is met as a full disk would be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(ConfigError, match=r"cannot be written \(File too large\); make room"):
            files.check_place(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_no_fault_of_the_disk_is_not_called_one(tmp_path):
    def broken(partial):
        partial.write_text("ha")
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        write_whole(tmp_path / "x", broken)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="mine"), files.writing(tmp_path / "x"):
        raise ValueError("mine")


def test_two_processes_do_not_write_into_each_other(tmp_path, monkeypatch):
    names = []
    for number in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda number=number: number)
        write_whole(tmp_path / "x", lambda partial: (names.append(partial.name), partial.touch()))
    assert names == [".x.1.partial", ".x.2.partial"]
    assert all(files.is_leftover(name, "y", "x") for name in names)
    assert not files.is_leftover("x", "x")
    assert not files.is_leftover(".y.1.partial", "x")


WRITERS = {
    "metrics": lambda home: JsonLines(home / "m.jsonl").truncate("step", 0),
    "report": lambda home: report.write(home / "r.html", report.page("x", [])),
    "results": lambda home: Results("knn", {}).write(home),
    "garments": lambda home: garments.write(home, limit=1),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_says_what_the_disk_said_and_cleans_up(tmp_path, monkeypatch, writer):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "replace", full)
    with pytest.raises(OpendinoError, match=r"could not be written \(No space left on device\)") as caught:
        WRITERS[writer](tmp_path)
    assert isinstance(caught.value, CheckpointError | ConfigError | DataError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_tensors_may_be_read_by_those_who_may_read_other_files(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        files.save_tensors({"w": torch.arange(3.0)}, tmp_path / "w.safetensors", {"format": "pt"})
        write_whole(tmp_path / "v.safetensors", lambda place: files.save_tensors({"v": torch.ones(1)}, place))
    finally:
        os.umask(before)
    assert [(tmp_path / f"{name}.safetensors").stat().st_mode & 0o777 for name in "wv"] == [mode, mode]
    assert load_file(tmp_path / "w.safetensors")["w"].tolist() == [0, 1, 2]


def test_every_file_of_tensors_is_written_in_one_place():
    package = Path(files.__file__).parent
    found = [path.name for path in sorted(package.rglob("*.py")) if "save_file(" in path.read_text(encoding="utf-8")]
    assert found == ["files.py"]
