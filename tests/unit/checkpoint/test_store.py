# SPDX-License-Identifier: Apache-2.0
import json
import logging
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from opendino.checkpoint import store
from opendino.checkpoint.store import CheckpointConfig
from opendino.errors import CheckpointError, ConfigError


def tensors(value=1.0):
    return {
        "student": {"backbone.w": torch.full((2, 3), value), "head.b": torch.tensor(value)},
        "optimizer": {
            "step": torch.tensor(7, dtype=torch.int64),
            "half": torch.full((3,), value, dtype=torch.bfloat16),
        },
    }


def steps(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").iterdir() if path.name.startswith("step_"))


def test_what_is_loaded_is_what_was_saved_bit_for_bit(tmp_path):
    saved = tensors(0.1)
    saved["student"]["backbone.w"][0, 0] = float("nan")
    meta = {"images_seen": 64, "versions": {"torch": "x"}}
    folder = store.save(tmp_path, 5, saved, meta)
    loaded = store.load(folder)
    assert (loaded.step, loaded.meta, folder.name) == (5, meta, "step_00000005")
    for part, group in saved.items():
        assert loaded.tensors[part].keys() == group.keys()
        for name, tensor in group.items():
            found = loaded.tensors[part][name]
            assert found.dtype == tensor.dtype
            assert found.shape == tensor.shape
            assert found.contiguous().view(-1).view(torch.uint8).equal(tensor.view(-1).view(torch.uint8))


def test_the_newest_and_the_milestones_are_kept(tmp_path):
    config = CheckpointConfig(keep=2, milestone_every=4)
    for step in range(1, 12):
        store.save(tmp_path, step, tensors(), {}, config)
    assert steps(tmp_path) == [4, 8, 10, 11]
    assert store.latest(tmp_path).name == "step_00000011"


def test_steps_beyond_eight_digits_sort_as_numbers(tmp_path):
    store.save(tmp_path, 99_999_999, tensors(), {})
    store.save(tmp_path, 100_000_000, tensors(), {})
    assert store.load(store.latest(tmp_path)).step == 100_000_000


@pytest.mark.parametrize("damage", ["cut", "no state", "no file", "bad json", "other json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage, caplog):
    store.save(tmp_path, 1, tensors(), {})
    broken = store.save(tmp_path, 2, tensors(), {})
    weights = broken / "student.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "no file":
        weights.unlink()
    elif damage == "no state":
        (broken / "state.json").unlink()
    else:
        (broken / "state.json").write_text("{" if damage == "bad json" else '{"step": 2}')
    with caplog.at_level(logging.WARNING, logger="opendino"):
        logging.getLogger("opendino").propagate = True
        assert store.latest(tmp_path).name == "step_00000001"
    assert "step_00000002 is passed over" in caplog.text
    with pytest.raises(CheckpointError, match="remove this folder"):
        store.load(broken)
    store.save(tmp_path, 2, tensors(), {})
    assert store.load(store.latest(tmp_path)).step == 2


def test_damaged_newer_checkpoints_never_push_out_the_last_whole_one(tmp_path):
    """Continued from 10 because 12 is damaged, and keeping one: what is written at 11 is what stays."""
    store.save(tmp_path, 10, tensors(), {})
    broken = store.save(tmp_path, 12, tensors(), {})
    (broken / "student.safetensors").write_bytes(b"")
    store.save(tmp_path, 11, tensors(2.0), {}, CheckpointConfig(keep=1))
    assert store.load(store.latest(tmp_path)).step == 11
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step_00000011", "step_00000012.damaged",
    ]  # fmt: skip


def test_an_altered_checkpoint_of_the_right_size_does_not_count_as_a_whole_one(tmp_path):
    """Keeping two, of which one has been altered on the disk: the third is kept, for it is the second whole one."""
    for step in (1, 2):
        store.save(tmp_path, step, tensors(), {}, CheckpointConfig(keep=2))
    path = tmp_path / "checkpoints" / "step_00000002" / "student.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    store.save(tmp_path, 3, tensors(), {}, CheckpointConfig(keep=2))
    assert steps(tmp_path) == [1, 2, 3]
    assert store.load(tmp_path / "checkpoints" / "step_00000001").step == 1
    store.save(tmp_path, 4, tensors(), {}, CheckpointConfig(keep=2))
    assert steps(tmp_path)[-2:] == [3, 4]
    assert 1 not in steps(tmp_path)


def test_what_was_just_written_stays_though_newer_ones_are_whole(tmp_path):
    store.save(tmp_path, 12, tensors(), {})
    store.save(tmp_path, 11, tensors(), {}, CheckpointConfig(keep=1))
    assert steps(tmp_path) == [11, 12]


def test_a_flipped_bit_is_found(tmp_path):
    folder = store.save(tmp_path, 1, tensors(), {})
    path = folder / "student.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not those that were written"):
        store.load(folder)


def test_another_layout_is_refused(tmp_path):
    folder = store.save(tmp_path, 1, tensors(), {})
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(CheckpointError, match="layout 99, this version reads 2"):
        store.load(folder)


def test_leftovers_of_a_killed_process_are_no_checkpoints(tmp_path):
    folder = store.save(tmp_path, 3, tensors(), {})
    partial = tmp_path / "checkpoints" / ".step_00000004.partial"
    partial.mkdir()
    (partial / "student.safetensors").write_bytes(b"half")
    assert store.latest(tmp_path) == folder
    store.clean(tmp_path)
    assert not partial.exists()
    assert store.load(folder).step == 3


def test_what_a_kill_left_is_dropped_when_the_run_goes_on(tmp_path, monkeypatch):
    """Killed between the last checkpoint and the removal of the oldest, with milestones at multiples of 4."""
    config = CheckpointConfig(keep=2, milestone_every=4)
    with monkeypatch.context() as killed:
        killed.setattr(store, "prune", lambda *_: None)
        for step in (3, 4, 5, 6):
            store.save(tmp_path, step, tensors(), {}, config)
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    with monkeypatch.context() as readonly:
        readonly.setattr(store, "prune", _no_room)
        store.catch_up(tmp_path, config)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    for _ in range(2):
        store.catch_up(tmp_path, config)
        assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
            "step_00000004", "step_00000005", "step_00000006",
        ]  # fmt: skip


def test_nothing_is_dropped_for_a_newest_one_that_is_damaged(tmp_path):
    """As long as it should be and of other bytes, which only reading all of it shows."""
    for step in (1, 2):
        newest = store.save(tmp_path, step, tensors(), {}, CheckpointConfig(keep=9))
    damaged = next(newest.glob("*.safetensors"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert store.latest(tmp_path) == newest
    store.catch_up(tmp_path, CheckpointConfig(keep=1))
    with pytest.raises(CheckpointError, match="continues from an earlier checkpoint"):
        store.load(newest)
    shutil.rmtree(newest)
    assert store.load(store.latest(tmp_path)).step == 1


def _no_room(*_):
    raise OSError(30, "Read-only file system")


def test_no_checkpoint_yet(tmp_path):
    assert store.latest(tmp_path) is None
    store.clean(tmp_path)


WRITE_WITH_LITTLE_ROOM = """
import pathlib, resource, sys, torch
from opendino.checkpoint import store
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    store.save(pathlib.Path(sys.argv[1]), 2, {"student": {"x": torch.zeros(100_000)}}, {})
except store.CheckpointError as error:
    print(error)
"""


def test_no_space_left_keeps_the_earlier_checkpoint(tmp_path):
    folder = store.save(tmp_path, 1, tensors(), {})
    # A limit on the size of files fails a write in the middle, as a full disk does.
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WITH_LITTLE_ROOM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    message = done.stdout.strip()
    assert message.startswith(
        f"{tmp_path / 'checkpoints'}: the checkpoint of step 2 could not be written (File too large"
    )
    assert message.endswith("the run continues from step 1")
    assert "\n" not in message
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert store.load(folder).step == 1


def test_check_fit_names_what_differs():
    wanted = {"a": torch.zeros(2, 3), "b": torch.zeros(1), "c": torch.zeros(1)}
    store.check_fit("x", wanted, wanted)
    with pytest.raises(CheckpointError) as caught:
        store.check_fit("x/student", {"a": torch.zeros(2, 4), "b": torch.zeros(1), "d": torch.zeros(1)}, wanted)
    assert "x/student: is of another shape than this run's model (lacks c; has also d; a is 2x4 and not 2x3)" in str(
        caught.value
    )


@pytest.mark.parametrize("bad", [{"every": 0}, {"minutes": -1.0}, {"keep": 0}, {"milestone_every": -1}])
def test_cadences_that_make_no_sense(bad):
    with pytest.raises(ConfigError, match=f"checkpoint.{next(iter(bad))}"):
        CheckpointConfig(**bad)


def shares(step):
    """Three processes' shares of one part, cut along the first axis, the last with nothing; a scalar on the first."""
    whole = torch.arange(10.0).view(5, 2) + step
    cut = [{"w": rows} for rows in whole.split([3, 2, 0])]
    cut[0]["count"] = torch.tensor(step)
    return whole, [{"student": group} for group in cut]


def write_together(folder, step, groups, config=None):
    """Errors of the three, in threads."""
    store.begin(folder, step)
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(store.save, folder, step, group, {"n": step}, config, store.Share(number, 3))
            for number, group in enumerate(groups)
        ]
        return [job.exception() for job in jobs]


def _says(open_it):
    try:
        open_it()
    except CheckpointError as error:
        return "student-00001-of-00003.safetensors: its bytes are not those that were written" in str(error)
    return False


def test_processes_write_their_shares_and_any_reads_the_whole(tmp_path):
    for step in (1, 2, 3):
        whole, groups = shares(step)
        assert write_together(tmp_path, step, groups, CheckpointConfig(keep=2)) == [None] * 3
    assert steps(tmp_path) == [2, 3]
    found = store.load(store.latest(tmp_path))
    assert found.tensors["student"]["w"].equal(whole)
    assert found.tensors["student"]["count"] == 3
    assert found.meta == {"n": 3}
    assert {path.name for path in found.folder.iterdir()} == {
        "state.json", *(f"student-0000{n}-of-00003.safetensors" for n in range(3))
    }  # fmt: skip
    # Processes that open it together check the hashes of some files each, and all of them together.
    altered = found.folder / "student-00001-of-00003.safetensors"
    altered.write_bytes(altered.read_bytes()[:-1] + b"!")
    assert [_says(lambda n=n: store.opened(found.folder, store.Share(n, 2))) for n in range(2)] == [False, True]
    altered.write_bytes(b"\xff" * altered.stat().st_size)
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.opened(found.folder, store.Share(0, 2))
    altered.unlink()
    assert store.latest(tmp_path).name == "step_00000002"


def test_a_share_that_cannot_be_written_fails_the_checkpoint_and_keeps_the_former(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_WAIT", 10.0)
    _, groups = shares(1)
    write_together(tmp_path, 1, groups)
    _, groups = shares(2)
    groups[1]["z" * 300] = groups[1].pop("student")  # no file can have such a name
    first, second, third = write_together(tmp_path, 2, groups)
    assert third is None
    assert "File name too long" in str(second)
    assert "another process: File name too long" in str(first.__cause__)
    assert steps(tmp_path) == [1]
    assert store.load(store.latest(tmp_path)).step == 1
    assert not list((tmp_path / "checkpoints").glob(".step*"))


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_by_itself(tmp_path):
    for folder in [store.save(tmp_path, step, tensors(), {}) for step in (1, 2)]:
        (folder / "student.safetensors").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"no checkpoint there is whole, of 2 .* to begin this run anew"):
        store.latest(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    assert store.latest(tmp_path) is None
