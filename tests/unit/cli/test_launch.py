# SPDX-License-Identifier: Apache-2.0
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from opendino.cli import _launch
from opendino.cli._launch import Job, Launch, taken_off
from opendino.cli.main import main
from opendino.errors import ConfigError


def test_words_of_the_launch_are_taken_off():
    words = ["recipe", "data=D", "launch=slurm", "nodes=4", "gpus=8", "hours=0.5", "partition=big", "train.epochs=2"]
    launch, rest = taken_off(words)
    assert rest == ["recipe", "data=D", "train.epochs=2"]
    assert launch == Launch("slurm", nodes=4, gpus=8, hours=0.5, partition="big")
    assert taken_off(["data=D", "nodes=4"]) == (None, ["data=D", "nodes=4"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["launch=cloud"], "launch"),
        (["launch=local", "nodes=2"], "launch=local has this machine alone"),
        (["launch=slurm", "nodes=0"], r"launch\.nodes = 0"),
        (["launch=slurm", "hours=.inf"], r"launch\.hours = inf"),
        (["launch=slurm", "hours=.nan"], r"hours = nan: is no number"),
    ],
)
def test_what_cannot_be_launched(words, message):
    with pytest.raises(ConfigError, match=message):
        taken_off(words)


def test_what_a_cluster_is_asked_for():
    asked = _launch._parameters(Launch("slurm", nodes=4, gpus=8, cpus=12, hours=2.0, memory=500, account="us"))
    assert asked == {
        "nodes": 4, "tasks_per_node": 8, "gpus_per_node": 8, "cpus_per_task": 12, "timeout_min": 120, "mem_gb": 500,
        "name": "opendino", "slurm_account": "us", "slurm_signal_delay_s": 120,
    }  # fmt: skip


def test_without_submitit(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'opendino\[slurm\]'"):
        _launch.submit(Launch(), ["pretrain"])


def test_without_a_cluster(tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    assert main(["pretrain", "launch=slurm", f"output_dir={tmp_path / 'run'}"]) == 2
    assert "is this a machine of the cluster?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the processes of a job are found in /proc")
def test_a_job_of_two_processes_whose_time_is_up_goes_on(tiny_words, tmp_path, monkeypatch):
    """submitit's local executor: two processes, the signal ahead of the end of time, queued again, through."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run, steps = tmp_path / "run", 90
    words = [*tiny_words, f"train.iterations={steps}", "checkpoint.every=999"]
    job = _launch.submit(Launch("local", processes=2), ["pretrain", *words])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not ((run / "metrics.jsonl").exists() and len(seen(run)) > 2):
        time.sleep(0.01)
    controller = job._process.pid
    first, _ = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(first), signal.SIGUSR2)  # to one of the two, as the controller does to both when time is nearly up
    assert job.results() == [0, 0]
    assert seen(run) == list(range(1, steps + 1))
    saved = [int(path.name[5:]) for path in (run / "checkpoints").iterdir()]
    assert len(saved) == 2, "where time was up, and the end"
    said = "".join(path.read_text() for path in (tmp_path / "run.jobs").glob("*.err"))
    assert "Requeued job" in said + "".join(path.read_text() for path in (tmp_path / "run.jobs").glob("*.out"))
    assert json.loads((run / "checkpoints" / f"step_{steps:08d}" / "state.json").read_text())["meta"]["world_size"] == 2


def seen(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    return [line["step"] for line in lines if "loss" in line]


def test_a_job_asks_for_itself_again():
    submitit = pytest.importorskip("submitit")
    again = Job(["pretrain", "a=b"]).checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function.words == ["pretrain", "a=b"]
