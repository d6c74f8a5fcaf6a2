# SPDX-License-Identifier: Apache-2.0
"""Pictures that several tests of whole commands share."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def labelled_parts(tmp_path) -> Path:
    """A folder with `train/` and `val/`: three classes of five and of four small pictures."""
    rng = np.random.default_rng(0)
    for part, each in (("train", 5), ("val", 4)):
        for name in ("a", "b", "c"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def scenes(tmp_path) -> Path:
    """A folder with `images/`, `masks/` and `depth/`: a bright half, whose side is random, is class 1 and near."""
    home, rng = tmp_path / "scenes", np.random.default_rng(1)
    for part in ("images", "masks", "depth"):
        (home / part).mkdir(parents=True)
    for i in range(5):
        mask = np.zeros((16, 24), np.uint8)
        mask[:, : int(rng.integers(6, 18))] = 1
        pixels = 60 + 120 * mask[..., None] + rng.integers(-20, 20, (16, 24, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(home / "images" / f"{i}.png")
        Image.fromarray(mask).save(home / "masks" / f"{i}.png")
        np.save(home / "depth" / f"{i}.npy", (4.0 - 2.0 * mask).astype(np.float32))
    return home
