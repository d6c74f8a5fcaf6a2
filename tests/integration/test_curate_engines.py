# SPDX-License-Identifier: Apache-2.0
"""Processes, ranks and Ray's actors give the same manifest as one process, byte for byte."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

WORDS = """
embed.model=thumbnail index.rows=13 dedup.threshold=0.9 cluster.levels=[12,4] cluster.resample=[3,1] cluster.steps=2
cluster.kmeans.device=cpu cluster.kmeans.iterations=8 search.device=cpu balance.size=30 retrieve.method=sample
retrieve.k=2 mix.parts=[balance,retrieve] decontaminate.threshold=0.97
"""
# Ray's workers would step back behind everything else that runs, and need minutes to import torch; and a busy
# machine that does not answer for half a minute is not a lost one.
RAY = {"RAY_worker_niceness": "0", "RAY_health_check_failure_threshold": "100"}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | RAY


@pytest.fixture(scope="module")
def heap(tmp_path_factory):
    """Ninety smooth random pictures, eight of them twice; some of them also evaluation images and queries."""
    root, rng = tmp_path_factory.mktemp("heap"), np.random.default_rng(0)
    for number in range(90):
        small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8))
        picture = small.resize((40 + number % 7, 40), Image.Resampling.BICUBIC)
        for name, wanted in (("pool", True), ("val", number < 3), ("queries", number > 84)):
            if wanted:
                (root / name).mkdir(exist_ok=True)
                picture.save(root / name / f"{number:02d}.png")
        if 10 <= number < 18:
            picture.resize((32, 32)).save(root / "pool" / f"{number:02d}-copy.jpg")
    return root


def curate(heap, out, *words, ranks=0, limit=280):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(29600 + ranks)]
    command = [sys.executable, *(launcher if ranks else []), "-m", "opendino", "curate", f"out={out}",
               f"index.sources=[{heap / 'pool'}]", f"references=[{heap / 'val'}]", f"queries=[{heap / 'queries'}]",
               *WORDS.split(), *words]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, done.stderr[-3000:]
    return outputs(out)


def outputs(out):
    """Bytes of every result of every stage; the report shows the folder's name."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix in (".npy", ".parquet")
    }


@pytest.fixture(scope="module")
def alone(heap, tmp_path_factory):
    return curate(heap, tmp_path_factory.mktemp("alone") / "out")


def test_one_process_finds_what_was_planted(alone, heap, tmp_path):
    import io

    import pyarrow.parquet as pq

    copies = pq.read_table(io.BytesIO(alone["dedup/copies.parquet"])).to_pydict()
    assert len(copies["row"]) == 16
    leaks = pq.read_table(io.BytesIO(alone["decontaminate/leaks.parquet"])).to_pydict()
    assert leaks["row"] == [0, 1, 2]
    manifest = pq.read_table(io.BytesIO(alone["manifest/manifest.parquet"])).to_pydict()
    assert sum("balance" in why for why in manifest["reason"]) == 30
    assert {f"{n}.png" for n in range(85, 90)} <= set(manifest["key"])


@pytest.mark.slow
def test_two_processes(alone, heap, tmp_path):
    assert curate(heap, tmp_path / "out", "engine.workers=2") == alone


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_of_torchrun(alone, heap, tmp_path, ranks):
    assert curate(heap, tmp_path / "out", "engine.name=torchrun", ranks=ranks) == alone


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_actors_of_ray(alone, heap, tmp_path):
    pytest.importorskip("ray", reason="ray is an extra: pip install 'opendino[ray]'; this takes one to ten minutes")
    assert curate(heap, tmp_path / "out", "engine.name=ray", "engine.workers=2", limit=1700) == alone
