# SPDX-License-Identifier: Apache-2.0
"""The same batches, bit for bit, whatever the number of workers and wherever a run is taken up; workers end cleanly."""

import io
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.data.augment import CropsConfig
from opendino.data.datasets import open_dataset
from opendino.data.loaders import LoaderConfig, pretrain_loader
from opendino.data.masking import MaskConfig

STEPS = 7


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Thirty photographs of many sizes and modes, one of them cut off in the middle."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(30):
        pixels = rng.integers(0, 256, (*rng.integers(20, 90, 2), 3)).astype(np.uint8)
        image = Image.fromarray(pixels).convert(("RGB", "L", "RGBA", "P", "CMYK")[number % 5])
        image = image.convert("RGB") if image.mode == "CMYK" else image
        stream = io.BytesIO()
        image.save(stream, "PNG")
        (root / f"{number:02d}.png").write_bytes(stream.getvalue()[: 700 if number == 9 else None])
    return root


def batches(source, workers, start=0, count=STEPS, **options):
    loader = pretrain_loader(
        open_dataset(source),
        CropsConfig(global_size=32, local_size=16, local_number=3),
        MaskConfig(),
        8,
        6,
        seed=3,
        start_step=start,
        workers=workers,
        config=LoaderConfig(max_bad_rate=0.5),
        **options,
    )
    out = list(itertools.islice(loader, count))
    loader.close()
    return out


def same(a, b):
    for name, value in vars(a).items():
        other = getattr(b, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


@pytest.fixture(scope="module")
def alone(source):
    """The batches without workers."""
    made = batches(source, 0)
    assert sum(len(batch.skipped) for batch in made) >= 1
    return made


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_workers(source, alone, workers):
    for ours, theirs in zip(batches(source, workers), alone, strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 4])
def test_a_run_goes_on_at_any_step(source, alone, workers, start):
    for ours, theirs in zip(batches(source, workers, start, STEPS - start), alone[start:], strict=True):
        same(ours, theirs)


def test_random_state_and_threads_of_the_caller_do_not_matter(source, alone):
    torch.manual_seed(99)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for ours, theirs in zip(batches(source, 2), alone, strict=True):
            same(ours, theirs)
    finally:
        torch.set_num_threads(threads)


SCRIPT = """
import sys, time
from opendino.data.augment import CropsConfig
from opendino.data.datasets import open_dataset
from opendino.data.loaders import LoaderConfig, pretrain_loader
from opendino.data.masking import MaskConfig

loader = pretrain_loader(
    open_dataset(sys.argv[1]), CropsConfig(global_size=32, local_size=16, local_number=1), MaskConfig(), 8, 4,
    workers=2, config=LoaderConfig(max_bad_rate=0.5),
)
next(loader)
print("ready", flush=True)
if sys.argv[2] == "end":
    sys.exit(0)
time.sleep(60)
"""


def workers_of(parent):
    """Processes whose parent is the given one."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            children.append(int(stat.parent.name))
    return children


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are counted in /proc")
@pytest.mark.parametrize("how", ["end", "kill"])
def test_no_worker_outlives_its_run(source, how):
    """At the end of the program, and when the training process is killed so that it can tell nobody."""
    program = subprocess.Popen([sys.executable, "-c", SCRIPT, str(source), how], stdout=subprocess.PIPE, text=True)
    assert program.stdout.readline() == "ready\n"
    workers = workers_of(program.pid)
    if how == "kill":
        assert len(workers) == 2
        os.kill(program.pid, signal.SIGKILL)
    code = program.wait(timeout=60)
    program.stdout.close()
    assert code == (0 if how == "end" else -signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(alive(worker) for worker in workers)


@pytest.mark.skipif(sys.platform != "linux", reason="signals are sent to a process group")
def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_run(source):
    """Ctrl-C reaches the workers too; they go on, so that the run can end its step."""
    loader = pretrain_loader(
        open_dataset(source), CropsConfig(global_size=32, local_number=0), MaskConfig(), 8, 4, workers=2,
        config=LoaderConfig(max_bad_rate=0.5),
    )  # fmt: skip
    next(loader)
    for worker in workers_of(os.getpid()):
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
    for _ in range(8):
        next(loader)
    loader.close()
