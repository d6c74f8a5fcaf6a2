# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import pytest

from opendino.errors import CheckpointError, ConfigError
from opendino.train import trackers
from opendino.train.metrics import LogConfig, MetricLog

PLAIN = LogConfig(trackers=())


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_records_beyond_the_checkpoint_are_dropped_and_written_again(tmp_path):
    log = MetricLog(tmp_path, 0, PLAIN)
    for step in range(6):
        log.write(step, {"loss": 10.0 - step})
    log.close()
    log = MetricLog(tmp_path, 3, PLAIN)
    assert [record["step"] for record in lines(tmp_path)] == [0, 1, 2, 3]
    log.write(4, {"loss": 0.5})
    assert lines(tmp_path)[-1] == {"step": 4, "loss": 0.5}


def test_a_run_without_a_checkpoint_begins_anew(tmp_path):
    MetricLog(tmp_path, 0, PLAIN).write(0, {"knn/top1_k20": 9.0})
    MetricLog(tmp_path, 0, PLAIN).write(1, {"loss": 1.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path):
    MetricLog(tmp_path, 0, PLAIN).write(1, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    MetricLog(tmp_path, 2, PLAIN).write(3, {"loss": 3.0})
    assert [record["step"] for record in lines(tmp_path)] == [1, 3]


def test_what_is_not_finite_becomes_null(tmp_path):
    log = MetricLog(tmp_path, 0, PLAIN)
    log.write(1, {"a": float("nan"), "b": float("inf"), "c": 2})
    log.to_disk()
    assert lines(tmp_path) == [{"step": 1, "a": None, "b": None, "c": 2}]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_tensorboard_has_each_step_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = MetricLog(tmp_path, 0, LogConfig())
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    first.close()
    second = MetricLog(tmp_path, 2, LogConfig())
    for step in (3, 4):
        second.write(step, {"loss": 10.0 * step})
    second.to_disk()
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 30), (4, 40)]


def test_an_event_file_begun_in_the_second_of_a_killed_process_is_read_after_it(tmp_path, monkeypatch):
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    now, slept = [1_700_000_000.25], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(trackers.time, "time", lambda: now[0])
    monkeypatch.setattr(trackers.time, "sleep", sleep)
    killed = folder / "events.out.tfevents.1700000000.host.99999999.0"  # a number that sorts after ours
    killed.touch()
    MetricLog(tmp_path, 3, LogConfig()).close()
    assert slept == [0.75]
    assert sorted(path.name for path in folder.iterdir())[0] == killed.name


def test_tensorboard_of_a_run_that_begins_anew_has_no_doubles(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for value in (1.0, 2.0):  # killed before the first checkpoint, and started again
        log = MetricLog(tmp_path, 0, LogConfig())
        for step in (0, 1):
            log.write(step, {"loss": value})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 2), (1, 2)]


WRITE_WITH_LITTLE_ROOM = """
import pathlib, resource, sys, threading, time
from opendino.errors import CheckpointError
from opendino.train.metrics import LogConfig, MetricLog
hook = threading.excepthook
log = MetricLog(pathlib.Path(sys.argv[1]), 0, LogConfig())
board = log._trackers[0].board
board.file_writer.event_writer._async_writer._worker._flush_secs = 0  # the thread itself meets the full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
try:
    for step in range(999):
        board.add_scalar("loss", 1.0, step)
        time.sleep(0.01)
        log.to_disk()
except CheckpointError as error:
    print(error)
log.close()
print(threading.excepthook is hook)
"""


def test_a_full_disk_under_tensorboard_is_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WITH_LITTLE_ROOM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    sentence, restored = done.stdout.splitlines()
    assert sentence.startswith(f"{tmp_path / 'tensorboard'}: could not be written (File too large)")
    assert restored == "True"
    assert "Traceback" not in done.stderr


def test_nothing_is_made_before_the_first_record(tmp_path):
    log = MetricLog(tmp_path, 0, PLAIN)
    log.to_disk()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_cadence():
    with pytest.raises(ConfigError, match=r"log\.every = 0"):
        LogConfig(every=0)


def test_a_full_disk(tmp_path):
    log = MetricLog(tmp_path, 0, PLAIN)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: could not be written \(No space left"):
        log.write(1, {"loss": 1.0})
