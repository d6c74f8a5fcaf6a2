# SPDX-License-Identifier: Apache-2.0
"""Several processes train what one trains: the same losses, and a run that moves between them.

Everything that needs two processes is done in one pair of them, for each has to import torch.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys

import pytest

import opendino
from opendino.cli.main import main

STEPS = 20
SCRIPT = """
import faulthandler, json, os, signal, sys, time
from pathlib import Path
from opendino.cli.main import main
from opendino.errors import DataError
from opendino.parallel.compile import compile_blocks
from opendino.train import pretrain

faulthandler.dump_traceback_later(200, exit=True)
take = pretrain._Feed.__next__
rank = os.environ["RANK"]

def trouble(feed):
    feed.given = getattr(feed, "given", 0) + 1
    batch = take(feed)
    if (name, rank, feed.given) in {("stopped", "1", 3), ("stopped alone", "0", 5)}:
        os.kill(os.getpid(), signal.SIGUSR1)
    if rank == "1" and feed.given == 3:  # of one process alone
        if name == "failed":
            raise DataError("no picture here")
        if name == "gone":
            written.write_text(json.dumps(codes | {name: 2}))
            os._exit(0)
        if name == "spoilt":
            batch.global_crops[:, 0, 0, 0] = float("nan")
    return batch

pretrain._Feed.__next__ = trouble
codes, written = {}, Path(f"{sys.argv[1]}.codes.{rank}")
for name, port, words in json.loads(Path(sys.argv[1]).read_text()):
    os.environ["MASTER_PORT"] = str(port)
    if not name.endswith("alone"):
        codes[name] = main(words)
        continue
    # Process 0 as if there were no other, which waits.
    world, done = os.environ["WORLD_SIZE"], Path(f"{sys.argv[1]}.done.{port}")
    if rank == "0":
        os.environ["WORLD_SIZE"] = "1"
        if name == "compiled alone":  # what torch.compile makes of blocks, without minutes of a C++ compiler
            compile_blocks.__kwdefaults__["backend"] = "aot_eager"
        Path(f"{done}.new").write_text(str(main(words)))
        Path(f"{done}.new").rename(done)
        os.environ["WORLD_SIZE"] = world
    while not done.exists():
        time.sleep(0.02)
    codes[name] = int(done.read_text())
written.write_text(json.dumps(codes))
"""


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def free_ports(number):
    """Ports that nobody listens on, below those the system hands out: minutes pass until the last of them is used."""
    found = []
    for port in random.sample(range(15_000, 32_000), 1_000):
        with socket.socket() as one:
            if len(found) < number and one.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found


def run_together(jobs, tmp_path, world=2):
    """Do commands one after the other on two processes, as torchrun starts them; their exit codes and what they say."""
    (tmp_path / "jobs").write_text(
        json.dumps([(name, port, words) for (name, words), port in zip(jobs, free_ports(len(jobs)), strict=True)])
    )
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "jobs")],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    said = [process.communicate(timeout=250)[0] for process in running]
    codes = []
    for rank, process in enumerate(running):
        assert process.returncode == 0, said[rank][-3000:]
        codes.append(json.loads((tmp_path / f"jobs.codes.{rank}").read_text()))
    return codes, said


def cut(folder, copy, step):
    """A run as a kill behind a checkpoint leaves it."""
    shutil.copytree(folder, copy)
    for path in (copy / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    return copy


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tiny_words, tmp_path):
    """Whole copies and shares, with KoLeo, centres or Sinkhorn, padding and looks; and runs that change processes."""
    base = [*tiny_words, f"train.iterations={STEPS}", "student.drop_path_rate=0", "koleo.loss_weight=0.5",
            "dino.centering=sinkhorn_knopp", "optim.warmup=0", "knn.every=20", "checkpoint.every=5",
            "checkpoint.keep=9"]  # fmt: skip
    centres = ["dino.centering=centering", "ibot.separate_head=true", "train.iterations=4"]

    ten = ["train.iterations=10", "knn.every=0"]

    def words(name, *more):
        return ["pretrain", *base, f"output_dir={tmp_path / name}", *more]

    def adapted(name, *more):
        """New heads alone for two steps, then the backbone too."""
        start = ["adapt", str(tmp_path / "one" / "weights"), "adapt.head_steps=2", "optim.base_lr=1e-2"]
        return [*start, *base, "train.iterations=5", "knn.every=0", f"output_dir={tmp_path / name}", *more]

    assert main(words("one")) == 0
    assert main(words("centres alone", *centres)) == 0
    assert main(words("ten steps", *ten)) == 0
    assert main(adapted("adapted alone")) == 0
    assert main(adapted("lora alone", "adapt.lora=2")) == 0
    cut(tmp_path / "one", tmp_path / "onward", 5)
    behind, by_clock = "checkpoint.asynchronous=true", "checkpoint.minutes=1e-9"
    jobs = {
        "ddp": words("ddp", behind, by_clock),
        "fsdp": words("fsdp", "parallel.mode=fsdp", "train.accumulate=2", "masks.pad=always"),
        "centres": words("centres", *centres, "masks.pad=always"),
        "onward": words("onward", "parallel.mode=fsdp", behind),
        "adapted": adapted("adapted", "parallel.mode=fsdp", by_clock),
        "lora": adapted("lora", "adapt.lora=2"),
        "stopped": words("stopped", "parallel.mode=fsdp", "checkpoint.every=99"),
        "stopped alone": words("stopped", "checkpoint.every=99"),
        "stopped and on": words("stopped", "parallel.mode=fsdp", "checkpoint.every=99"),
        "compiled alone": words("compiled", *ten, "parallel.compile=true"),
        "failed": words("failed"),
        "spoilt": words("spoilt", "train.iterations=5"),
        "bad": words("bad", "parallel.mode=none"),
        "no images": ["pretrain", *base, f"output_dir={tmp_path / 'x'}", f"data={tmp_path / 'nowhere'}"],
        "no start": ["adapt", str(tmp_path / "absent"), *base, f"output_dir={tmp_path / 'x'}"],
        "gone": words("gone"),
    }
    codes, said = run_together(list(jobs.items()), tmp_path)
    bad = dict.fromkeys(("stopped", "stopped alone"), 128 + signal.SIGUSR1)
    bad |= {"failed": 2, "bad": 2, "no images": 2, "no start": 2, "gone": 2}
    assert codes == [dict.fromkeys(jobs, 0) | bad] * 2
    assert "Traceback" not in "".join(said)
    assert said[1] == "error: no picture here\n"
    assert said[0].count("parallel.mode = none, but there are 2 processes") == said[0].count("nowhere") == 1
    assert said[0].count("absent: no such file or folder") == 1
    assert "stopped and saved" in said[0]
    assert "error: process 0 lost another one of its run" in said[0].splitlines()[-1]

    one = losses(tmp_path / "one")
    assert len(one) == STEPS
    for name in ("ddp", "fsdp", "onward"):
        assert losses(tmp_path / name) == pytest.approx(one, rel=1e-5), name
        assert opendino.load(tmp_path / name).state_dict().keys() == opendino.load(tmp_path / "one").state_dict().keys()
    for name in ("centres", "adapted", "lora"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / f"{name} alone"), rel=1e-5), name

    # Overdue after every step, and saved by both.
    for name, steps in (("ddp", range(12, 21)), ("adapted", range(1, 6))):
        kept = sorted(int(path.name[5:]) for path in (tmp_path / name / "checkpoints").iterdir())
        assert kept == list(steps)

    # From shares of two processes back to one, which holds them all.
    newest = cut(tmp_path / "onward", tmp_path / "home", 15) / "checkpoints" / "step_00000015"
    assert len(list(newest.glob("student-*-of-00002.safetensors"))) == 2
    assert main(words("home", "parallel.mode=fsdp")) == 0
    assert losses(tmp_path / "home") == pytest.approx(one, rel=1e-5)

    # Two processes, one of which was asked to stop; then one, asked too; then two again.
    saved = {path.name: json.loads((path / "state.json").read_text())["meta"]["world_size"]
             for path in (tmp_path / "stopped" / "checkpoints").iterdir()}  # fmt: skip
    assert saved == {"step_00000003": 2, "step_00000008": 1, "step_00000020": 2}
    assert losses(tmp_path / "stopped") == pytest.approx(one, rel=1e-5)

    compiled = losses(tmp_path / "compiled")
    assert len(compiled) == 10
    assert compiled == pytest.approx(losses(tmp_path / "ten steps"), rel=1e-5)
    record = json.loads((tmp_path / "spoilt" / "not_finite_step_2.json").read_text())
    assert len(record["images"]) == 8, "of both processes"
    last = [json.loads(line) for line in (tmp_path / "spoilt" / "metrics.jsonl").read_text().splitlines()]
    assert [line["not_finite"] for line in last if "loss" in line] == [0, 0, 1, 1, 1]
    assert [line["loss"] is None for line in last if "loss" in line] == [False, False, True, False, False]
