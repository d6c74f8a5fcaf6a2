# SPDX-License-Identifier: Apache-2.0
"""Collapse drill: a run with nothing against collapse is named by the watch within 200 steps, a healthy one is not."""

import json

import pytest

from opendino.cli.main import main
from opendino.data import garments

WORDS = """
student.preset=vit_custom student.patch_size=10 student.in_chans=1 student.embed_dim=32 student.depth=2
student.num_heads=2 student.init_values=0.1 masks.min_block=1
crops.global_size=40 crops.local_size=20 crops.local_number=2 crops.global_scale=[0.3,1.0] crops.local_scale=[0.1,0.4]
crops.blur=none crops.gray=0.0 crops.saturation=0.0 crops.hue=0.0 crops.solarize=0.0 crops.jitter=0.0
dino.prototypes=64 dino.hidden_dim=64 dino.bottleneck_dim=32 dino.nlayers=2 teacher.momentum=[0.97,1.0]
optim.base_lr=2e-3 optim.lr_scaling=none optim.layerwise_decay=1.0 optim.patch_embed_lr_mult=1.0
train.batch_size=8 train.iterations=100 train.device=cpu train.threads=1 train.precision=fp32
loader.workers=0 checkpoint.every=50 log.every=50 log.trackers=[] log.picture=false knn.every=0 watch.share=1.0
"""
HEALTHY = ["dino.centering=sinkhorn_knopp", "teacher.temp=[0.04,0.04]"]
COLLAPSING = ["dino.centering=none", "teacher.temp=[1.0,1.0]"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("garments")
    garments.write(folder, limit=60)
    return folder / "train.parquet"


def glances(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record for record in records if "watch/mean_entropy" in record}


def test_the_watch_stops_a_run_that_collapses_and_no_healthy_one(pictures, tmp_path, caplog, capsys):
    words = ["pretrain", *WORDS.split(), f"data={pictures}"]
    assert main([*words, *HEALTHY, f"output_dir={tmp_path / 'healthy'}", "watch.action=stop"]) == 0
    found = glances(tmp_path / "healthy")
    assert list(found) == [0, 20, 40, 60, 80, 100]
    assert found[100]["watch/mean_entropy"] < 0.99
    assert found[100]["watch/mean_cosine"] < found[0]["watch/mean_cosine"] - 0.1
    assert found[100]["watch/teacher_kl"] > 0.01

    bad = [*words, *COLLAPSING, f"output_dir={tmp_path / 'bad'}"]
    capsys.readouterr()
    assert main([*bad, "watch.action=stop"]) != 0
    assert "collapse at step 80: every image is undecided" in capsys.readouterr().err
    caplog.clear()
    assert main([*bad, "watch.action=warn"]) == 0  # looking is no part of what a run computes: it may go on
    assert "continuing from step 50" in caplog.text + capsys.readouterr().err
    found = glances(tmp_path / "bad")
    assert found[100]["watch/mean_entropy"] > 0.999
    assert found[100]["watch/teacher_kl"] < 0.01
