# SPDX-License-Identifier: Apache-2.0
import hashlib

import pytest

from opendino.checkpoint import _folders
from opendino.errors import CheckpointError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(folder, text):
    with _folders.whole(folder) as partial:
        (partial / "a.txt").write_text(text)


def test_a_folder_is_made_and_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "deep" / "weights"
    write(folder, "one")
    (folder / "left-over.txt").write_text("of the old one")
    write(folder, "two")
    assert (folder / "a.txt").read_text() == "two"
    assert names(folder) == ["a.txt"]
    assert names(folder.parent) == ["weights"]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    folder = tmp_path / "weights"
    write(folder, "one")
    with pytest.raises(OSError, match="no space"), _folders.whole(folder) as partial:
        (partial / "a.txt").write_text("half")
        raise OSError("no space")
    assert (folder / "a.txt").read_text() == "one"
    assert names(tmp_path) == ["weights"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path):
    folder = tmp_path / "weights"
    write(folder, "one")
    folder.rename(tmp_path / ".weights.previous")  # killed here: the new one is still hidden
    (tmp_path / ".weights.partial").mkdir()
    _folders.settle(folder)
    assert (folder / "a.txt").read_text() == "one"
    write(folder, "two")
    assert names(tmp_path) == ["weights"]


def test_a_kill_before_the_old_folder_is_removed_is_mended(tmp_path):
    folder = tmp_path / "weights"
    write(folder, "new")
    old = tmp_path / ".weights.previous"
    old.mkdir()
    (old / "a.txt").write_text("old")
    _folders.settle(folder)
    assert (folder / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["weights"]


def test_a_reader_between_the_two_renames_finds_the_earlier_folder_and_moves_nothing(tmp_path):
    folder, previous = tmp_path / "weights", tmp_path / ".weights.previous"
    write(folder, "one")
    folder.rename(previous)
    assert _folders.standing(folder) == previous
    assert _folders.standing(folder / "a.txt").read_text() == "one"
    assert names(tmp_path) == [".weights.previous"]
    assert _folders.standing(tmp_path / "none") == tmp_path / "none"


def test_what_fails_is_read_again_only_if_the_folder_was_replaced(tmp_path):
    folder, calls = tmp_path / "weights", []
    write(folder, "one")

    def read(replace):
        calls.append(1)
        if len(calls) == 1:
            if replace:
                write(folder, "two")
            raise CheckpointError("its hash is another")
        return (folder / "a.txt").read_text()

    assert _folders.reading(lambda: read(replace=True), folder) == "two"
    calls.clear()
    with pytest.raises(CheckpointError):
        _folders.reading(lambda: read(replace=False), folder)


def test_hash_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 100_000)
    assert _folders.sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
