# SPDX-License-Identifier: Apache-2.0
"""Scripts beside the package stay in step with it: each starts, says what it is for, and does a small piece of work."""

import gzip
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from opendino.config import load
from opendino.data.augment import CropsConfig
from opendino.data.datasets import open_dataset
from opendino.train.config import PretrainConfig

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "benchmarks").glob("*.py")), ROOT / "examples" / "make_garments.py"]


def script(path):
    """The script as a module; what stands under `if __name__` does not run."""
    specification = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_says_what_it_is_for(path, monkeypatch, capsys):
    module = script(path)
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert module.__doc__.splitlines()[0] in shown
    assert f"python {path.relative_to(ROOT)}" in shown


def test_phases_of_a_step_add_up(tiny_settings):
    benchmark = script(ROOT / "benchmarks" / "train_step.py")
    figures = benchmark.measure(load(PretrainConfig, None, tiny_settings), steps=2, warmup=0)
    assert set(figures["phases"]) == set(benchmark.PHASES)
    assert figures["img_per_s"] == pytest.approx(8 / figures["seconds"])
    assert sum(figures["phases"].values()) == pytest.approx(figures["seconds"], rel=0.5)


def test_phases_of_an_image(picture_folder):
    benchmark = script(ROOT / "benchmarks" / "loader.py")
    crops = CropsConfig(global_size=16, local_size=8, local_number=2)
    found = benchmark.phases(open_dataset(picture_folder), crops, 4, 3)
    assert list(found) == ["decode", "crops", "jitter, grey", "blur, solarize", "masks, collate"]
    assert found["decode"] > 0 < found["crops"]


def test_a_drill_meets_all_that_a_process_began():
    """A session of its own, as torchrun gives to each rank, is out of reach for a signal to the group."""
    drills = script(ROOT / "benchmarks" / "drills.py")
    begin = "import subprocess, sys; subprocess.Popen(['sleep', '60'], start_new_session=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", begin], stdin=subprocess.PIPE)
    late = time.monotonic() + 20
    while len(found := drills.family(process.pid)) < 2 and time.monotonic() < late:
        time.sleep(0.05)
    for one in found:
        os.kill(one, signal.SIGKILL)
    process.communicate()
    assert found[0] == process.pid
    assert len(found) == 2


def test_garments_are_the_first_of_each_class(tmp_path, monkeypatch):
    """Made IDX files of two images a class, of which one is taken."""
    made = script(ROOT / "examples" / "make_garments.py")
    labels = np.array([3, 3, 1, 0, 1, 0, *range(2, 10), 2, *range(4, 10)], dtype=np.uint8)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (tmp_path / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    monkeypatch.setattr(made, "PARTS", {"train": ("train", 1), "test": ("t10k", 2)})
    monkeypatch.setattr(sys, "argv", ["make_garments.py", str(tmp_path), str(tmp_path / "out")])
    made.main()
    train = open_dataset(tmp_path / "out" / "train.parquet", channels=1)
    assert train.targets.tolist() == [3, 1, 0, 2, 4, 5, 6, 7, 8, 9]
    assert np.array_equal(np.asarray(train.image(1)), images[2])
    assert len(open_dataset(tmp_path / "out" / "test.parquet", channels=1)) == len(labels) - 1  # three of class 3
