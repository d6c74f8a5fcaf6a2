# SPDX-License-Identifier: Apache-2.0
"""An embedding that is killed again and again leaves the bytes of one that was not."""

import json
import subprocess
import sys
import time

import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.models.vision_transformer import VisionTransformer

KILLS = 3


@pytest.mark.slow
def test_killed_and_whole_are_equal(tmp_path, picture_folder):
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=56, patch_size=4, embed_dim=128, depth=6, num_heads=2)
    save_weights(backbone, tmp_path / "w")
    words = [sys.executable, "-m", "opendino", "embed", str(picture_folder), "--model", str(tmp_path / "w")]
    words += ["rows=1", "device=cpu", "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for _ in range(KILLS):
        there = len(list(killed.glob("part-*.parquet")))
        process = subprocess.Popen([*words, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(killed.glob("part-*.parquet"))) < there + 5:
            time.sleep(0.002)
        process.kill()
        process.wait()
    for folder in (killed, whole):
        subprocess.run([*words, str(folder)], check=True, capture_output=True)
    one, two = (json.loads((folder / "done.json").read_text())["outputs"] for folder in (killed, whole))
    assert one == two
    assert sum(name.endswith(".parquet") for name in one) == 40
