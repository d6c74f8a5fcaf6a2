# SPDX-License-Identifier: Apache-2.0
"""Pretraining on a CUDA device: the same command, bfloat16, and the same start as on the CPU."""

import json
import math
from pathlib import Path

import pytest
import torch

import opendino
from opendino.cli.main import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def losses(folder):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run(tiny_words, tmp_path, precision):
    words = ["train.device=cuda", f"train.precision={precision}", "loader.workers=2", "knn.every=3"]
    assert main(["pretrain", *tiny_words, *words]) == 0
    found = losses(tmp_path / "run")
    assert len(found) == 6
    assert all(map(math.isfinite, found))
    assert opendino.load(tmp_path / "run").cls_token.device.type == "cpu"


def test_the_first_loss_is_the_cpus(tiny_words, tmp_path):
    for device in ("cpu", "cuda"):
        words = [f"train.device={device}", f"output_dir={tmp_path / device}", "student.drop_path_rate=0"]
        assert main(["pretrain", *tiny_words, *words]) == 0
    assert losses(tmp_path / "cuda")[0] == pytest.approx(losses(tmp_path / "cpu")[0], rel=1e-4)


def test_a_run_of_the_gpu_continues(tiny_words, tmp_path):
    words = [*tiny_words, "train.device=cuda"]
    assert main(["pretrain", *words]) == 0
    newest = tmp_path / "run" / "checkpoints" / "step_00000006"
    (newest / "state.json").unlink()
    assert main(["pretrain", *words]) == 0
    assert len(losses(tmp_path / "run")) == 6
