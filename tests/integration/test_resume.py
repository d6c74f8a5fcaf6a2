# SPDX-License-Identifier: Apache-2.0
"""A run that is killed, stopped or cut off continues as if nothing had been, to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
import yaml
from safetensors.torch import load_file

from opendino.cli.main import main
from opendino.train import pretrain as pretraining
from opendino.train import run_folder, ways

TIMED = ("img_per_s", "data_wait", "looking_seconds", "looking_share")
STEPS = 12


def words_for(tiny_words, folder, *more):
    return ["pretrain", *tiny_words, f"output_dir={folder}", f"train.iterations={STEPS}", "knn.every=4", *more]


def records(folder):
    """Everything in metrics.jsonl but times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def tensors(folder, step=STEPS):
    home = folder / "checkpoints" / f"step_{step:08d}"
    return {path.name: load_file(path) for path in sorted(home.glob("*.safetensors"))}


def assert_same_run(folder, reference):
    assert records(folder) == records(reference)
    for name, group in tensors(reference).items():
        found = tensors(folder)[name]
        assert found.keys() == group.keys()
        assert all(found[key].equal(tensor) for key, tensor in group.items())
    assert_same_weights(folder, reference)


def assert_same_weights(folder, reference):
    found, wanted = (load_file(home / "weights" / "model.safetensors") for home in (folder, reference))
    assert found.keys() == wanted.keys()
    assert all(found[key].equal(tensor) for key, tensor in wanted.items())
    assert json.loads((folder / "weights" / "config.json").read_text())["provenance"]["step"] == STEPS


@pytest.fixture(scope="module")
def references():
    return {}


@pytest.fixture
def reference(references, tiny_words, tmp_path_factory):
    """The same run without interruption, in this process and without workers."""
    if "folder" not in references:
        folder = tmp_path_factory.mktemp("reference") / "run"
        assert main(words_for(tiny_words, folder)) == 0
        references["folder"] = folder
    return references["folder"]


def start(words, **environment):
    """The command as a user starts it, in a process group of its own; on one thread where no environment is given."""
    return subprocess.Popen(
        [sys.executable, "-m", "opendino", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment or {**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_step(process, folder, step, seconds=120):
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and any(f'"step": {step},' in line for line in metrics.read_text().splitlines()):
            return
        time.sleep(0.002)
    pytest.fail(f"step {step} was not seen: {process.communicate()[0]}")


def test_the_reference_has_every_step_once_and_looks_at_the_teacher(reference):
    steps = [record["step"] for record in records(reference) if "loss" in record]
    assert steps == list(range(1, STEPS + 1))
    looks = [record["step"] for record in records(reference) if "knn/top1_k20" in record]
    assert looks == [0, 4, 8, 12]
    assert (reference / "weights" / "model.safetensors").is_file()
    # The last two are kept.
    assert sorted(path.name for path in (reference / "checkpoints").iterdir()) == ["step_00000010", "step_00000012"]


@pytest.mark.parametrize(("workers", "at"), [(0, 5), (2, 7)])
def test_killed_in_the_middle(tiny_words, tmp_path, reference, workers, at):
    folder = tmp_path / "run"
    words = words_for(tiny_words, folder, f"loader.workers={workers}")
    process = start(words)
    wait_for_step(process, folder, at)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = len([record for record in records_of_whole_lines(folder) if "loss" in record])
    assert at <= done < STEPS, "killed too late to prove anything"
    assert main(words) == 0
    assert_same_run(folder, reference)


def records_of_whole_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]


def scalars(folder):
    """What TensorBoard shows: tag to (step, value) in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own making
        shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in shown.Scalars(tag)]
        for tag in shown.Tags()["scalars"]
        if tag not in TIMED
    }


def test_killed_as_a_user_runs_it(tiny_words, tmp_path, monkeypatch):
    """Half precision, TensorBoard and the picture on, and a number of threads that the first start finds by trial."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    more = [
        "train.precision=bf16",
        "log.trackers=[tensorboard]",
        "log.picture=true",
        "train.threads=0",
        "loader.workers=1",
    ]
    folder, whole = tmp_path / "run", tmp_path / "whole"
    words = words_for(tiny_words, folder, *more)
    process = start(words, **os.environ)
    wait_for_step(process, folder, 5)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    threads = json.loads((folder / "run.json").read_text())["facts"]["threads"]
    way = yaml.safe_load((folder / "config.yaml").read_text())["train"]["attention"]
    # What the trials found is kept, whatever other trials would find now.
    with monkeypatch.context() as patch:
        for place, trial in ((pretraining, "choose_threads"), (ways, "try_attention"), (ways, "try_linears")):
            patch.setattr(place, trial, lambda *_: pytest.fail("tried again"))
        assert main(words) == 0
    assert torch.get_num_threads() == threads
    found = [f"train.threads={threads}", f"train.attention={way}"]
    assert main([*words_for(tiny_words, whole, *more), *found]) == 0
    assert_same_run(folder, whole)
    assert scalars(folder) == scalars(whole)
    assert len(scalars(whole)["loss"]) == STEPS


def test_killed_again_and_again(tiny_words, tmp_path, reference):
    """Whatever the moment: before the first checkpoint, while one is written, at the end."""
    folder = tmp_path / "run"
    words = words_for(tiny_words, folder)
    for at in (1, 6, 11):
        process = start(words)
        wait_for_step(process, folder, at)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert main(words) == 0
    assert_same_run(folder, reference)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(tiny_words, tmp_path, reference, number, code):
    folder = tmp_path / "run"
    words = words_for(tiny_words, folder, "loader.workers=2", "checkpoint.every=100")
    process = start(words)
    wait_for_step(process, folder, 3)
    os.killpg(process.pid, number)  # as Ctrl-C in a terminal does: to the workers too
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    assert "stopped and saved" in output
    assert "the same command continues" in output
    assert "Traceback" not in output
    (saved,) = (folder / "checkpoints").iterdir()
    assert 3 <= int(saved.name[5:]) < STEPS
    assert main(words) == 0
    assert_same_run(folder, reference)


def test_a_second_start_is_refused_and_the_first_goes_on(tiny_words, tmp_path, reference, capsys):
    folder = tmp_path / "run"
    words = words_for(tiny_words, folder)
    process = start(words)
    wait_for_step(process, folder, 2)
    os.kill(process.pid, signal.SIGSTOP)  # so that it cannot end before the second start
    try:
        assert main(words) == 2
    finally:
        os.kill(process.pid, signal.SIGCONT)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "another process is writing this run" in line
    assert process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert_same_run(folder, reference)


def test_a_finished_run_stays_as_it_is(tiny_words, reference, capsys):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
    assert main(words_for(tiny_words, reference)) == 0
    assert "finished already: 12 steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("left", ["old", "none", "previous"])
def test_killed_between_the_last_checkpoint_and_the_weights(tiny_words, tmp_path, reference, left):
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    weights = folder / "weights"
    if left == "none":
        shutil.rmtree(weights)
    else:
        config = json.loads((weights / "config.json").read_text())
        config["provenance"]["step"] = STEPS - 2
        (weights / "config.json").write_text(json.dumps(config))
        (weights / "model.safetensors").write_bytes(b"of an earlier step")
    if left == "previous":
        weights.rename(folder / ".weights.previous")
    assert main(words_for(tiny_words, folder)) == 0
    assert_same_run(folder, reference)
    assert not (folder / ".weights.previous").exists()


def test_a_run_on_a_read_only_disk(tiny_words, tmp_path, reference, monkeypatch, capsys):
    """A finished one is reported, any other is refused before the first step; neither is touched."""
    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    monkeypatch.setattr(run_folder, "writable", lambda folder: False)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(words_for(tiny_words, folder)) == 0
    assert "finished already: 12 steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    shutil.rmtree(folder / "checkpoints" / "step_00000012")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(words_for(tiny_words, folder)) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "cannot be written, and its run is at step 10 of 12" in line
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_damaged_newest_checkpoint_is_passed_over(tiny_words, tmp_path, reference):
    folder = tmp_path / "run"
    words = words_for(tiny_words, folder)
    assert main(words) == 0
    broken = folder / "checkpoints" / "step_00000012" / "student.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    assert main(words) == 0
    assert_same_run(folder, reference)


def test_workers_and_cadence_may_change(tiny_words, tmp_path, reference):
    folder = tmp_path / "run"
    more = ["loader.workers=1", "loader.thread=always", "checkpoint.every=99", "checkpoint.minutes=1e-9"]
    process = start(words_for(tiny_words, folder, *more))
    wait_for_step(process, folder, 4)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    saved = [int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*")]
    assert max(saved) >= 3, "by the clock, after every step"
    assert main(words_for(tiny_words, folder, "loader.workers=0", "checkpoint.every=3", "checkpoint.keep=1")) == 0
    assert records(folder) == records(reference)


def test_ways_may_change_and_what_went_on_is_noted(tiny_words, tmp_path, reference):
    folder = tmp_path / "run"
    process = start(words_for(tiny_words, folder, "checkpoint.every=2"))
    wait_for_step(process, folder, 4)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    changed = {"optim.fused": False, "dino.needed_tokens": False}
    assert main(words_for(tiny_words, folder, *(f"{name}=false" for name in changed), "checkpoint.every=2")) == 0
    for found, wanted in zip(records(folder), records(reference), strict=True):
        assert found.keys() == wanted.keys()
        assert found.get("loss", 0.0) == pytest.approx(wanted.get("loss", 0.0), abs=1e-3)
    (continued,) = json.loads((folder / "run.json").read_text())["continued"]
    assert continued["settings"] == changed
    assert 2 <= continued["step"] < STEPS
    assert continued["step"] % 2 == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["optim"]["fused"], "what it was started with"


SLOW_DISK = """
import sys, time
from opendino.checkpoint import store
from opendino.cli.main import main
write = store._write_part

def slow(path, tensors):
    entry = write(path, tensors)
    if "step_00000008" in str(path):
        time.sleep(60)
    return entry

store._write_part = slow
main(sys.argv[1:])
"""


def test_killed_in_the_middle_of_a_save_behind_the_steps(tiny_words, tmp_path, reference):
    """Training is past step 8 while its checkpoint is half on the disk; the former is what the run goes on from."""
    folder = tmp_path / "run"
    words = words_for(tiny_words, folder, "checkpoint.asynchronous=true")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_DISK, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    wait_for_step(process, folder, 9)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    found = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert found == [".step_00000008.partial", "step_00000004", "step_00000006"]
    assert main(words) == 0
    assert_same_run(folder, reference)
