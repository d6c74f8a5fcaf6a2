# SPDX-License-Identifier: Apache-2.0
"""Killed at random, again and again, the pipeline ends with the same bytes, and makes no finished part twice.

Four times here; OPENDINO_TEST_KILLS=20 for twenty.
"""

import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

# A child that curates, with every stage's parts slowed down a little, and notes which parts it makes. It kills itself
# some seconds after work has begun, so that every kill falls into the work and none into the imports.
SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path
from opendino.config import load
from opendino.curate import pipeline
from opendino.stages import engines
made = engines._make
def slow(task, part, owner):
    if not engines.marker(task.folder, part).exists():
        time.sleep(0.02)
        made(task, part, owner)
        with Path(sys.argv[1]).open("a") as file:
            file.write(f"{task.folder.name} {part}\\n")
engines._make = slow
config = load(pipeline.CurateConfig, None, sys.argv[3:])
began = time.monotonic()
if float(sys.argv[2]):
    timer = threading.Timer(float(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()
pipeline.run(config)
print(time.monotonic() - began)
"""
WORDS = """
embed.model=thumbnail index.rows=5 dedup.threshold=0.95 cluster.levels=[10,3] cluster.steps=3 cluster.resample=[3,2]
cluster.kmeans.device=cpu cluster.kmeans.iterations=6 cluster.kmeans.save_every=2 search.device=cpu balance.size=20
"""


@pytest.fixture(scope="module")
def heap(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("heap"), np.random.default_rng(0)
    for number in range(60):
        small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8))
        small.resize((40, 40), Image.Resampling.BICUBIC).save(root / f"{number:02d}.png")
    return root


def run(heap, out, made, after=0.0):
    words = [f"out={out}", f"index.sources=[{heap}]", *WORDS.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SCRIPT, str(made), str(after), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)


def results(out):
    files = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.suffix != ".html"}


@pytest.mark.slow
def test_killed_at_random(heap, tmp_path):
    kills = int(os.environ.get("OPENDINO_TEST_KILLS", "4"))
    whole = run(heap, tmp_path / "whole", tmp_path / "made_whole")
    assert whole.returncode == 0, whole.stderr[-2000:]
    lasts = float(whole.stdout.split()[-1])
    dice = random.Random(0)
    # Together less than the whole takes, so that nearly all of them find work to interrupt.
    ends = [
        run(heap, tmp_path / "killed", tmp_path / "made", dice.uniform(0.1, 1.1) * lasts / kills).returncode
        for _ in range(kills)
    ]
    assert set(ends) <= {0, -signal.SIGKILL}
    assert ends.count(-signal.SIGKILL) > kills / 2
    last = run(heap, tmp_path / "killed", tmp_path / "made")
    assert last.returncode == 0, last.stderr[-2000:]
    found, wanted = results(tmp_path / "killed"), results(tmp_path / "whole")
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    made = (tmp_path / "made").read_text().split("\n")[:-1]
    assert len(made) == len(set(made))
    assert set(made) <= set((tmp_path / "made_whole").read_text().split("\n"))
    print(f"{ends.count(-signal.SIGKILL)} of {kills} starts were killed at work")
