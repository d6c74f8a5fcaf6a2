# SPDX-License-Identifier: Apache-2.0
"""From a command line to figures: the measuring verbs end to end."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.checkpoint.hub import load_backbone
from opendino.checkpoint.weights import save_weights
from opendino.cli import eval as verb
from opendino.data.datasets import open_dataset
from opendino.eval._features import FeatureConfig, extract
from opendino.eval.health import effective_rank
from opendino.models.vision_transformer import VisionTransformer

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


def make(folder, each, seed, names=tuple(COLOURS)):
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.clip(COLOURS[name] + rng.normal(0, 25, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    save_weights(
        VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=2, num_heads=1), home / "run" / "weights"
    )
    (home / "run" / "config.yaml").write_text("seed: 0\n")
    make(home / "train", 12, 0)
    make(home / "val", 5, 1)
    (home / "val" / "red" / "4.png").write_bytes(b"no picture")
    return home


def figures(home, protocol):
    (path,) = (home / "run" / "eval").glob(f"{protocol}-*.json")
    return json.loads(path.read_text())


def test_knn_of_a_run(home, capsys):
    data = [f"data.train={home / 'train'}", f"data.val={home / 'val'}"]
    words = ["knn", str(home / "run"), *data, "knn.k=[1,5,100]", "features.batch_size=7", "features.device=cpu"]
    assert verb.main(words) == 0
    printed = capsys.readouterr().out
    record = figures(home, "knn")
    assert record["figures"] == {"top1_k1": 100.0, "top1_k5": 100.0}
    assert record["config"]["knn"]["k"] == [1, 5, 100]
    assert record["data"]["val_images"] == 14
    assert [name.rpartition("/")[2] for name in record["data"]["skipped"]] == ["4.png"]
    assert len(record["model"]["sha256"]) == 64
    assert record["command"].startswith(f"opendino eval knn {home / 'run'} data.train=")
    assert record["seeds"] == {}
    assert "| top1_k5 | 100.00 |" in printed
    assert "1 images could not be read" in printed
    assert "left out k = 100" in printed


def test_a_class_that_is_missing_from_the_held_out_part_shifts_nothing(home, tmp_path, capsys):
    part = make(tmp_path / "part", 3, 2, names=("green", "red"))
    words = ["knn", str(home / "run"), f"data.train={home / 'train'}", f"data.val={part}", "knn.k=[5]"]
    assert verb.main([*words, f"out={tmp_path / 'out'}", "features.device=cpu"]) == 0
    (path,) = (tmp_path / "out").glob("*.json")
    assert json.loads(path.read_text())["figures"]["top1_k5"] == 100.0


def test_logreg_and_health(home, capsys):
    data = [f"data.train={home / 'train'}", f"data.val={home / 'val'}"]
    quick = ["logreg.values=3", "logreg.exponents=[-1,1]", "features.device=cpu"]
    assert verb.main(["logreg", str(home / "run"), *data, *quick]) == 0
    assert figures(home, "logreg")["figures"]["top1"] == 100.0
    assert verb.main(["health", str(home / "run"), f"data={home / 'train'}", "features.device=cpu"]) == 0
    images = open_dataset(home / "train")
    features = extract(load_backbone(home / "run"), images, FeatureConfig(device="cpu"))
    found = figures(home, "health")["figures"]
    assert found["cls_effective_rank"] == pytest.approx(effective_rank(features.cls), rel=1e-6)
    assert found["patch_mean_effective_rank"] == pytest.approx(effective_rank(features.patch_mean), rel=1e-6)
    assert found["cls_effective_rank"] != pytest.approx(found["patch_mean_effective_rank"], rel=1e-3)


def test_mistakes_are_one_sentence_without_traceback(home):
    command = [sys.executable, "-m", "opendino", "eval", "knn", str(home / "run"), f"data.train={home / 'train'}"]
    done = subprocess.run(
        [*command, "data.val=nowhere"], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: nowhere: there is no such file or folder")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_natural_images_by_their_colours(real_data, tmp_path):
    """An untrained backbone sees colours and little else: above chance (10 %), far below a trained one."""
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=1)
    save_weights(backbone, tmp_path / "w")
    train, val = real_data / "cifar10-test.parquet", tmp_path / "val.parquet"
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(real_data / "cifar10-train.parquet").take(list(range(0, 50_000, 50))), val)
    words = ["knn", str(tmp_path / "w"), f"data.train={train}", f"data.val={val}", f"out={tmp_path / 'out'}"]
    assert verb.main([*words, "knn.feature=patch_mean", "features.batch_size=256"]) == 0
    (path,) = (tmp_path / "out").glob("*.json")
    assert 15 < json.loads(path.read_text())["figures"]["top1_k20"] < 45
