# SPDX-License-Identifier: Apache-2.0
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

from opendino.data.datasets._paths import PathTable, shown

MILLION = 1_000_000


def test_paths_come_back_as_they_went_in():
    names = ["a.png", "", "with space/b.JPG", "\u00e9t\u00e9/c.tif", os.fsdecode(b"broken-\xff.png")]
    table = PathTable.collect(map(os.fsencode, names))
    assert [table[i] for i in range(len(table))] == names
    with pytest.raises(IndexError):
        table[len(names)]


def private_bytes():
    """Memory that belongs to this process alone, as the kernel counts it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def look_at_all(table, answer):
    before = private_bytes()
    letters = sum(len(table[i]) for i in range(0, len(table), 3))
    answer.send((letters, private_bytes() - before))


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not count private memory here"
)
def test_a_million_paths_index_in_seconds_and_are_shared_by_workers():
    """A worker that looks at a third of a million paths copies next to nothing of them."""
    started = time.process_time()
    table = PathTable.collect(b"n%08d/images/n%08d_%d.JPEG" % (i // 1000, i // 1000, i % 1000) for i in range(MILLION))
    assert time.process_time() - started < 10
    assert table[MILLION - 1] == "n00000999/images/n00000999_999.JPEG"
    held = table.text.nbytes + table.offsets.nbytes
    assert held < 50 * MILLION
    assert sys.getsizeof(table) < 1000
    receive, send = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=look_at_all, args=(table, send))
    worker.start()
    letters, copied = receive.recv()
    worker.join()
    assert letters > 10 * MILLION
    assert copied < held / 10, f"{copied} bytes of {held} were copied"


def test_a_name_is_shown_in_one_line_of_text():
    assert shown("a b/é.png") == "a b/é.png"
    assert shown("a\n\tb\udcff\u202e") == "a\\n\\tb\\udcff\\u202e"
