# SPDX-License-Identifier: Apache-2.0
"""An embedding that is killed again and again leaves the bytes of one that was not; so do two ranks of torchrun.

`OPENDINO_KILLS=20` kills it twenty times.
"""

import json
import os
import subprocess
import sys
import time
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.embed import EmbedConfig, embed
from opendino.models.vision_transformer import VisionTransformer

KILLS = int(os.environ.get("OPENDINO_KILLS", "5"))
IMAGES = 40 + 8 * KILLS


@pytest.fixture
def work(tmp_path, picture_folder):
    """A model, and a list that names each picture several times."""
    torch.manual_seed(0)
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1), tmp_path / "w")
    files = sorted(str(path) for path in picture_folder.rglob("*.png"))
    (tmp_path / "list.txt").write_text("\n".join(files[row % len(files)] for row in range(IMAGES)))
    return str(tmp_path / "w"), str(tmp_path / "list.txt")


def shards(folder):
    return len(list(folder.glob("part-*.parquet")))


@pytest.mark.slow
def test_killed_and_whole_are_equal(tmp_path, work):
    """Kills fall anywhere within a shard: opening, decoding, the model, writing."""
    killed, whole, rng = tmp_path / "killed", tmp_path / "whole", np.random.default_rng(0)
    config, hit = EmbedConfig(rows=1, size=16, device="cpu", threads=1), 0
    processes = get_context("forkserver")  # imports once, so that a process lives for its work alone
    processes.set_forkserver_preload(["opendino.embed.folder"])
    for _ in range(KILLS):
        there, wanted, pause = shards(killed), int(rng.integers(0, 6)), float(rng.uniform(0, 0.03))
        process = processes.Process(target=embed, args=(*work, killed, config))
        process.start()
        while process.is_alive() and shards(killed) < there + wanted:
            time.sleep(0.001)
        time.sleep(pause)
        process.kill()
        process.join()
        hit += process.exitcode < 0
    assert hit >= KILLS - 1
    assert shards(killed) > 0
    for folder in (killed, whole):
        embed(*work, folder, config)
    one, two = (json.loads((folder / "done.json").read_text())["outputs"] for folder in (killed, whole))
    assert one == two
    assert sum(name.endswith(".parquet") for name in one) == IMAGES


@pytest.mark.slow
def test_two_ranks_give_the_bytes_of_one_process(tmp_path, work):
    model, data = work
    words = ["-m", "opendino", "embed", data, "--model", model, "rows=16", "size=16", "device=cpu", "decoder=pillow"]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    command = [*run, *words, "engine.name=torchrun", "--out", str(tmp_path / "ranks")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written:") == 1
    embed(model, data, tmp_path / "alone", EmbedConfig(rows=16, size=16, device="cpu", decoder="pillow"))
    one, two = (json.loads((tmp_path / name / "done.json").read_text())["outputs"] for name in ("ranks", "alone"))
    assert one == two
