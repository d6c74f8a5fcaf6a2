# SPDX-License-Identifier: Apache-2.0
"""Pretraining from end to end, by the command: from images to weights that can be opened."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import opendino
from opendino.cli.main import main


def records(folder, key="loss"):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


def losses(folder):
    return [record["loss"] for record in records(folder)]


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def test_a_folder_and_nothing_else(picture_folder, run, capsys, monkeypatch):
    """No recipe: settings are chosen, printed, and good; the run leaves everything that it should."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [f"data={picture_folder}", f"output_dir={run}", "train.iterations=3", "train.device=cpu"]
    assert main(["pretrain", *words]) == 0
    shown = capsys.readouterr()
    assert "chosen for this data" in shown.out
    assert "done: 3 steps" in shown.out
    assert "Traceback" not in shown.err
    for name in (
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "tensorboard",
        "first_batch.png",
        "checkpoints",
        "weights",
    ):
        assert (run / name).exists(), name
    with Image.open(run / "first_batch.png") as picture:
        assert np.asarray(picture).std() > 10
    assert [record["step"] for record in records(run, "knn/top1_k20")] == [0, 3]
    backbone = opendino.load(run)
    size = backbone.input_spec.size
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, *size))
    assert features.isfinite().all()


def test_loss_falls_and_starts_where_it_should(tiny_words, run):
    """At the start targets are flat and a student's logits are cosines of random directions over 0.1.

    Cosines in 256 dimensions have a variance of 1/256, so the logarithm of the sum of exponentials of K of them is
    ln K + 100/256/2, which is what every cross-entropy begins with (facts 2.8: "slightly above" ln K).
    """
    words = ["train.iterations=40", "optim.base_lr=0.05", "koleo.loss_weight=0", "optim.warmup=5"]
    words += ["dino.centering=sinkhorn_knopp", "dino.prototypes=512", "dino.bottleneck_dim=256"]
    assert main(["pretrain", *tiny_words, *words]) == 0
    first, *_, last = records(run)
    log_k = math.log(512) + 100 / 256 / 2
    pairs = 2 * 2 + 2  # two local crops against two views, two global pairs
    assert first["loss/dino_local"] == pytest.approx(log_k * 4 / pairs, rel=0.03)
    assert first["loss/dino_global"] == pytest.approx(log_k * 2 / pairs, rel=0.03)
    assert first["loss/ibot"] == pytest.approx(log_k * 0.5, rel=0.03)
    terms = ("dino_local", "dino_global", "ibot", "koleo")
    for record in (first, last):
        assert record["loss"] == pytest.approx(sum(record[f"loss/{term}"] for term in terms), rel=1e-6)
    assert np.mean(losses(run)[-5:]) < np.mean(losses(run)[:5]) - 0.1


def test_batches_do_not_depend_on_the_workers(tiny_words, tmp_path):
    assert main(["pretrain", *tiny_words, f"output_dir={tmp_path / 'a'}"]) == 0
    assert main(["pretrain", *tiny_words, f"output_dir={tmp_path / 'b'}", "loader.workers=2"]) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_the_seed_decides(tiny_words, tmp_path):
    assert main(["pretrain", *tiny_words, f"output_dir={tmp_path / 'a'}"]) == 0
    assert main(["pretrain", *tiny_words, f"output_dir={tmp_path / 'b'}", "seed=1"]) == 0
    assert losses(tmp_path / "a") != losses(tmp_path / "b")


VARIANTS = {
    "bf16": ["train.precision=bf16"],
    "sinkhorn": ["dino.centering=sinkhorn_knopp"],
    "separate heads": ["ibot.separate_head=true", "ibot.prototypes=16", "ibot.hidden_dim=16", "ibot.bottleneck_dim=8"],
    "no dino": ["dino.loss_weight=0"],
    "no ibot": ["ibot.loss_weight=0"],
    "no koleo": ["koleo.loss_weight=0"],
    "koleo alone": ["dino.loss_weight=0", "ibot.loss_weight=0"],
    "no local crops": ["crops.local_number=0"],
    "no masks": ["masks.probability=0"],
    "registers": ["student.num_register_tokens=2"],
    "swiglu": ["student.ffn_layer=swiglu"],
    "no clipping": ["optim.clip_grad=0"],
    "steps for shares": ["optim.warmup=2", "teacher.temp_warmup=3", "optim.freeze_last_layer=1"],
    "passes over the data": ["train.epochs=1"],
}


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_switch_is_a_run(tiny_words, run, words):
    words = [*tiny_words, "train.iterations=3", *words]
    assert main(["pretrain", *words]) == 0
    found = losses(run)
    assert len(found) == (5 if "train.epochs=1" in words else 3)
    assert all(map(math.isfinite, found))
    norms = [key for key in records(run)[0] if key.startswith("grad_norm/")]
    assert "grad_norm/backbone" in norms
    assert ("grad_norm/ibot_head" in norms) == ("ibot.separate_head=true" in words)


def test_a_term_that_is_off_is_zero(tiny_words, run):
    assert main(["pretrain", *tiny_words, "train.iterations=2", "ibot.loss_weight=0", "koleo.loss_weight=0"]) == 0
    for record in records(run):
        assert record["loss/ibot"] == record["loss/koleo"] == 0.0
        assert record["loss/dino_local"] > 0


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_other_channels(tiny_words, run, tmp_path, channels):
    """Grey pictures and arrays of many channels train a backbone of as many channels."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        pixels = rng.integers(0, 255, (20, 20) if channels == 1 else (20, 20, channels)).astype(np.uint8)
        if channels == 1:
            Image.fromarray(pixels).save(folder / f"{number}.png")
        else:
            np.save(folder / f"{number}.npy", pixels)
    assert main(["pretrain", *tiny_words, f"data={folder}", "knn.every=3"]) == 0
    backbone = opendino.load(run)
    assert backbone.in_chans == backbone.input_spec.channels == channels
    assert records(run, "health/effective_rank")


def test_bad_images_are_skipped_and_counted(tiny_words, run, tmp_path, picture_folder):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in picture_folder.rglob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "00.png").write_bytes(b"\x89PNG broken")
    assert main(["pretrain", *tiny_words, f"data={folder}", "loader.max_bad_rate=0.5", "train.iterations=12"]) == 0
    assert records(run)[-1]["skipped"] >= 1
    assert losses(run)[-1] > 0


def test_schedules_are_followed(tiny_words, run):
    words = ["train.iterations=10", "optim.warmup=0.5", "optim.weight_decay=[0.1, 0.3]", "teacher.momentum=[0.9, 1.0]"]
    assert main(["pretrain", *tiny_words, *words]) == 0
    found = records(run)
    peak = 4e-3 * math.sqrt(8 / 1024)
    # five warm-up steps from 0 to the peak, both included; then half a cosine towards 1e-6 at step 10
    assert [record["lr"] for record in found[:5]] == pytest.approx([peak * n / 4 for n in range(5)])
    assert found[5]["lr"] == pytest.approx(peak)
    assert found[7]["lr"] == pytest.approx(1e-6 + (peak - 1e-6) * (1 + math.cos(math.pi * 0.4)) / 2)
    assert found[5]["weight_decay"] == pytest.approx(0.2)
    assert found[5]["momentum"] == pytest.approx(0.95)


def test_a_recipe(tiny_words, run, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("seed: 7\ntrain: {iterations: 2}\n")
    words = [word for word in tiny_words if not word.startswith("train.iterations")]
    assert main(["pretrain", str(recipe), *words]) == 0
    assert len(losses(run)) == 2
    assert "seed: 7" in (run / "config.yaml").read_text()


def test_real_pictures_from_parquet(tiny_words, run, real_data):
    words = ["train.iterations=2", "knn.every=2", "knn.max_train=200", "knn.max_val=50"]
    assert main(["pretrain", *tiny_words, f"data={real_data / 'cifar10-train.parquet'}", *words]) == 0
    assert json.loads((run / "run.json").read_text())["facts"]["images"] == 50_000
    assert 0 <= records(run, "knn/top5_k20")[-1]["knn/top1_k20"] <= 100
