# SPDX-License-Identifier: Apache-2.0
import json
import os
import signal

import pyarrow as pa
import pytest

from opendino.errors import ConfigError, DataError
from opendino.stages import folder as stage_folder
from opendino.stages.folder import (
    Stage,
    claimed,
    counts_of,
    digest_of,
    marker,
    owner_of,
    parts_of,
    write_array,
    write_table,
)


def made(folder, parameters=None, value=1):
    stage = Stage(folder, "test", {"data": "abc"}, parameters or {"k": (1, 2)})
    stage.begin()
    for part in range(2):
        write_table(marker(folder, part), pa.table({"x": [value, part]}))
    stage.finish({"rows": 4})
    return stage


def test_a_finished_stage_is_done_until_its_plan_or_its_outputs_change(tmp_path):
    stage = made(tmp_path / "s")
    assert stage.is_done()
    assert counts_of(stage.folder) == {"rows": 4}
    assert not Stage(stage.folder, "test", {"data": "abc"}, {"k": [1, 3]}).is_done()
    assert not Stage(stage.folder, "test", {"data": "abd"}, {"k": [1, 2]}).is_done()
    assert Stage(stage.folder, "test", {"data": "abc"}, {"k": [1, 2]}).is_done()
    marker(stage.folder, 1).write_bytes(b"short")
    assert not stage.is_done()


def test_a_new_beginning_keeps_finished_parts_of_the_same_plan_only(tmp_path):
    stage = made(tmp_path / "s")
    marker(stage.folder, 1).write_bytes(b"short")
    stage.begin()
    assert [path.name for path in parts_of(stage.folder)] == ["part-00000.parquet"]
    Stage(stage.folder, "test", {}, {}).begin()
    assert parts_of(stage.folder) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="no plan of what wrote them"):
        Stage(tmp_path, "test", {}, {}).begin()
    assert (tmp_path / "holiday.jpg").exists()


def test_equal_outputs_have_equal_digests_and_bytes(tmp_path):
    a, b, c = made(tmp_path / "a"), made(tmp_path / "b"), made(tmp_path / "c", value=2)
    assert digest_of(a.folder) == digest_of(b.folder) != digest_of(c.folder)
    assert (a.folder / "done.json").read_bytes() == (b.folder / "done.json").read_bytes()
    assert len(json.loads((a.folder / "done.json").read_text())["outputs"]) == 2


def test_an_unfinished_stage_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="run `opendino curate dedup"):
        digest_of(tmp_path / "dedup")


def test_leftovers_of_a_killed_writer_go(tmp_path):
    stage = made(tmp_path / "s")
    left = stage.folder / ".part-00001.parquet.99.partial"
    left.write_bytes(b"half")
    stage.begin()
    assert not left.exists()


def test_a_part_is_claimed_by_one_process(tmp_path):
    with claimed(tmp_path, 3) as mine:
        assert mine
        child = os.fork()
        if child == 0:
            with claimed(tmp_path, 3) as theirs, claimed(tmp_path, 4) as other:
                os._exit(0 if (not theirs and other) else 1)
        assert os.waitpid(child, 0)[1] == 0
    with claimed(tmp_path, 3) as mine:
        assert mine


class Outliving:
    """A worker that is half way through part 0 when another run begins, and would go on with part 1."""

    def __init__(self, folder):
        begun, theirs = os.pipe()
        self.goes_on, self.go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            owner = owner_of(folder)
            for part in range(2):
                with claimed(folder, part, owner) as mine:
                    if not mine:
                        os._exit(part)
                    os.write(theirs, b"x")
                    os.read(self.goes_on, 1)
                    write_table(marker(folder, part), pa.table({"x": [-1, part]}))
            os._exit(9)
        assert os.read(begun, 1) == b"x"

    def end(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.parametrize("other_plan", [False, True])
def test_a_worker_that_outlives_its_run_is_waited_for_and_begins_no_more(tmp_path, caplog, monkeypatch, other_plan):
    first = Stage(tmp_path / "s", "test", {"data": "abc"}, {"k": 1})
    first.begin()
    worker = Outliving(first.folder)
    wait = stage_folder.locked

    def waited_for(*where, **how):
        os.write(worker.go, b"xx")  # as soon as it is, and no sooner
        return wait(*where, **how)

    monkeypatch.setattr(stage_folder, "locked", waited_for)
    second = Stage(first.folder, "test", {"data": "abc"}, {"k": 2 if other_plan else 1})
    second.begin()
    assert "waits for a worker of an earlier run, which still makes part 0" in caplog.text
    # Equal plans, equal bytes: its part stays. Of another plan it would be wrong, so it is gone.
    left = [] if other_plan else ["part-00000.parquet"]
    assert [path.name for path in parts_of(second.folder)] == left
    assert worker.end() == 1, "it has seen that part 1 is none of its business"
    assert [path.name for path in parts_of(second.folder)] == left
    with claimed(second.folder, 1, owner_of(second.folder)) as mine:
        assert mine


def test_a_worker_that_does_not_end_is_told(tmp_path, monkeypatch):
    stage = Stage(tmp_path / "s", "test", {}, {})
    stage.begin()
    worker = Outliving(stage.folder)
    monkeypatch.setattr(stage_folder, "_PATIENCE", 0.2)
    with pytest.raises(ConfigError, match="a worker of an earlier run is still making part 0; wait for its end"):
        Stage(stage.folder, "test", {}, {"k": 2}).begin()
    assert json.loads((stage.folder / "plan.json").read_text())["parameters"] == {}
    os.kill(worker.pid, signal.SIGKILL)
    os.waitpid(worker.pid, 0)
    Stage(stage.folder, "test", {}, {"k": 2}).begin()


def test_a_finished_stage_belongs_to_nobody(tmp_path):
    stage = made(tmp_path / "s")
    assert owner_of(stage.folder) == ""
    assert not [path for path in stage.folder.iterdir() if path.name.startswith(".")]
    with claimed(stage.folder, 0, "some run of before") as mine:
        assert not mine


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    import numpy as np

    write_array(tmp_path / "good.npy", np.zeros(3))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stage_folder.np, "save", full)
    monkeypatch.setattr(stage_folder.pq, "write_table", full)
    with pytest.raises(DataError, match=r"bad\.npy: could not be written \(No space left on device\); make room"):
        write_array(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(DataError, match="make room"):
        write_table(tmp_path / "bad.parquet", pa.table({"x": [1]}))
    assert [path.name for path in tmp_path.iterdir()] == ["good.npy"]


def test_a_changed_source_has_another_state(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    before = stage_folder.state_of(str(tmp_path))
    (tmp_path / "b.png").write_bytes(b"2")
    assert stage_folder.state_of(str(tmp_path)) != before
    with pytest.raises(DataError, match="no such file or folder"):
        stage_folder.state_of(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"plan": 1}', '{"plan": {}, "counts": {}, "outputs": {"../x": [1, 2]}}', "[" * 9999]
)
def test_a_word_of_done_that_is_none_is_not_believed(tmp_path, text):
    (tmp_path / "done.json").write_text(text)
    with pytest.raises(DataError, match="is not finished"):
        counts_of(tmp_path)
    assert not Stage(tmp_path, "a", {}, {}).is_done()
