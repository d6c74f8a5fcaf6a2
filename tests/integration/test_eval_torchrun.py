# SPDX-License-Identifier: Apache-2.0
"""The command under torchrun gives the figures of one process, writes once and prints once."""

import json
import os
import subprocess
import sys

import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.models.vision_transformer import VisionTransformer


@pytest.mark.slow
def test_two_processes_of_torchrun_equal_one(labelled_parts):
    tmp_path = labelled_parts
    torch.manual_seed(0)
    save_weights(VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1), tmp_path / "w")
    words = ["-m", "opendino", "eval", "knn", str(tmp_path / "w"), f"data.train={tmp_path / 'train'}",
             f"data.val={tmp_path / 'val'}", "knn.k=[1,3]", "features.batch_size=1", "features.device=cpu",
             "features.workers=0"]  # fmt: skip
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = {}
    for world, start in ((1, [sys.executable]), (2, run)):
        out = tmp_path / f"out{world}"
        done = subprocess.run([*start, *words, f"out={out}"], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("| top1_k1") == 1
        (file,) = out.glob("*.json")
        found[world] = json.loads(file.read_text())["figures"]
    assert found[1] == found[2]
