# SPDX-License-Identifier: Apache-2.0
"""Depth on the stereo pair of scikit-image: its geometry always, and a trained backbone where one is named.

A backbone that was trained takes longer than a test may: `OPENDINO_TEST_RUN=RUN` names one, such as a run of
`opendino pretrain vit_nano_cifar10_cpu`.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "eval_stereo.py"
MARGIN = 0.6
"""Part of a constant's RMSE that a trained head has to stay below; measured 0.45, with fresh weights 0.96."""


@pytest.fixture(scope="module")
def stereo():
    spec = importlib.util.spec_from_file_location("eval_stereo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_depth_falls_with_disparity_and_what_is_not_measured_is_zero(stereo):
    metres = stereo.depths(np.array([[np.inf, np.nan, 0, 20.0, 60.0]], np.float32))
    assert metres[0, :3].tolist() == [0, 0, 0]
    # Depth times (disparity + offset between the two principal points) is focal length times baseline.
    assert metres[0, 3:] * (np.array([20.0, 60.0]) + 31.086) == pytest.approx(994.978 * 0.193001, rel=1e-6)


def test_disparities_of_the_right_picture_are_those_of_the_nearer_surface(stereo):
    left = np.array([[np.nan, 1, 1, 3, 5, np.inf]], np.float32)
    # Columns 1, 2, 3 and 4 of the left picture are 0, 1, 0 and -1 of the right one.
    assert stereo.of_the_right(left).tolist() == [[3, 1, 0, 0, 0, 0]]


def test_learned_and_asked_tiles_are_apart(stereo, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        Image.fromarray(rng.integers(0, 255, (16, 24, 3), np.uint8)).save(tmp_path / f"motorcycle_{name}.png")
    np.savez(tmp_path / "motorcycle_disp.npz", rng.uniform(1, 5, (16, 24)).astype(np.float32))
    train, val = stereo.write_parts(tmp_path, tmp_path / "home", "tiles", (16, 24), 8)
    assert not ((train > 0) & (val > 0)).any()
    assert ((train > 0) | (val > 0)).all()
    assert np.load(tmp_path / "home" / "val" / "depth" / "0.npy").tolist() == val.tolist()
    known, asked = train[train > 0], val[val > 0]
    assert stereo.constants(train, val)["mean"] == pytest.approx(np.sqrt(np.mean((asked - known.mean()) ** 2)))


@pytest.mark.slow
def test_a_trained_head_beats_a_constant_by_far():
    run = os.environ.get("OPENDINO_TEST_RUN")
    if not run:
        pytest.skip("OPENDINO_TEST_RUN names no trained backbone")
    pytest.importorskip("skimage", reason="scikit-image, which ships the pair, is not installed", exc_type=ImportError)
    command = [sys.executable, str(SCRIPT), run, "--row", "trained", "--split", "views"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    part = float(done.stdout.strip().splitlines()[-1].strip("| ").split("|")[-1])
    assert part < MARGIN
