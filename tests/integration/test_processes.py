# SPDX-License-Identifier: Apache-2.0
"""Several processes train what one trains: the same losses, and a run that moves between them.

Everything that needs two processes is done in one pair of them, for each has to import torch.
"""

import json
import os
import socket
import subprocess
import sys

import pytest

STEPS = 20
SCRIPT = """
import faulthandler, json, os, sys
from pathlib import Path
from opendino.cli.main import main

faulthandler.dump_traceback_later(200, exit=True)
codes = {}
for name, port, words in json.loads(Path(sys.argv[1]).read_text()):
    os.environ["MASTER_PORT"] = str(port)
    codes[name] = main(words)
Path(f"{sys.argv[1]}.codes.{sys.argv[2]}").write_text(json.dumps(codes))
"""


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_together(jobs, tmp_path, world=2):
    """Do commands one after the other on two processes, as torchrun starts them; their exit codes and what they say."""
    (tmp_path / "jobs").write_text(json.dumps([(name, free_port(), words) for name, words in jobs]))
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "jobs"), str(rank)],
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


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tiny_words, tmp_path):
    """Whole copies and shares, with KoLeo, centres or Sinkhorn, patches and looks; then other processes go on."""
    from opendino.cli.main import main

    base = [*tiny_words, f"train.iterations={STEPS}", "student.drop_path_rate=0", "koleo.loss_weight=0.5",
            "dino.centering=sinkhorn_knopp", "optim.warmup=0", "knn.every=20", "checkpoint.every=10"]  # fmt: skip

    def words(name, *more):
        return ["pretrain", *base, f"output_dir={tmp_path / name}", *more]

    jobs = [
        ("ddp", words("ddp", "parallel.mode=ddp")),
        ("fsdp", words("fsdp", "parallel.mode=fsdp", "train.accumulate=2")),
        ("centres", words("centres", "dino.centering=centering", "ibot.separate_head=true", "train.iterations=4")),
        ("bad", words("bad", "parallel.mode=none")),
        ("no images", ["pretrain", *base, f"output_dir={tmp_path / 'x'}", f"data={tmp_path / 'nowhere'}"]),
    ]
    codes, said = run_together(jobs, tmp_path)
    assert codes == [{"ddp": 0, "fsdp": 0, "centres": 0, "bad": 2, "no images": 2}] * 2
    assert "Traceback" not in "".join(said)
    assert said[1] == ""
    assert said[0].count("parallel.mode = none, but there are 2 processes") == 1
    assert said[0].count("nowhere") == 1
    assert main(words("one")) == 0
    one = losses(tmp_path / "one")
    assert len(one) == STEPS
    for name in ("ddp", "fsdp"):
        assert losses(tmp_path / name) == pytest.approx(one, rel=1e-5), name
    alone = words("centres alone", "dino.centering=centering", "ibot.separate_head=true", "train.iterations=4")
    assert main(alone) == 0
    assert losses(tmp_path / "centres") == pytest.approx(losses(tmp_path / "centres alone"), rel=1e-5)
