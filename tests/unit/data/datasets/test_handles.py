# SPDX-License-Identifier: Apache-2.0

import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opendino.data.datasets import _handles
from opendino.data.datasets._handles import Handles


def open_files():
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / str(number) for number in range(4)]
    for path in paths:
        path.write_bytes(path.name.encode() * 10)
    return paths


def test_pieces_are_those_of_the_files_and_all_are_closed_in_the_end(files, monkeypatch):
    monkeypatch.setattr(_handles, "_MOST_OPEN", 2)
    before, handles = open_files(), Handles()
    for path in [*files, *files]:
        assert handles.read(path, 3, 4) == path.name.encode() * 4
    assert open_files() == before + 2
    assert pickle.loads(pickle.dumps(handles)).read(files[0], 0, 1) == b"0"
    del handles
    assert open_files() == before


def test_threads_get_the_bytes_of_their_own_file(files, monkeypatch):
    """More files than are kept open: a number closed by one thread is soon that of another file."""
    monkeypatch.setattr(_handles, "_MOST_OPEN", 2)
    before, interval, handles = open_files(), sys.getswitchinterval(), Handles()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda n: handles.read(files[n % 4], 3, 4), range(8000)))
    finally:
        sys.setswitchinterval(interval)
    assert found == [files[n % 4].name.encode() * 4 for n in range(8000)]
    assert open_files() <= before + 2


@pytest.mark.parametrize(
    ("offset", "length"), [(8, 3), (0, 2**62), (2**62, 1), (-1, 2), (2, -1), (2**70, 1), (0, 2**70)]
)
def test_a_piece_beyond_the_file_is_refused_before_memory_is_spent(files, offset, length):
    with pytest.raises(ValueError, match="bytes are there"):
        Handles().read(files[0], offset, length)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Handles().read(tmp_path / "x", 0, 1)
