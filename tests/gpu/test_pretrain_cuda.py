# SPDX-License-Identifier: Apache-2.0
"""Pretraining on a CUDA device: the same command, bfloat16, and the same start as on the CPU."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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


def kept(folder):
    """Every record but times, and the tensors of the last checkpoint."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = ("img_per_s", "data_wait", "looking_seconds", "looking_share")
    timeless = [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]
    newest = folder / "checkpoints" / "step_00000006"
    return timeless, {path.name: load_file(path) for path in sorted(newest.glob("*.safetensors"))}


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-4), ("bf16", 1e-2)])
def test_a_run_of_the_gpu_continues(tiny_words, tmp_path, precision, near):
    """From a checkpoint in the middle to the values of the run that was not interrupted."""
    words = [*tiny_words, "train.device=cuda", f"train.precision={precision}"]
    folder = tmp_path / "run"
    assert main(["pretrain", *words]) == 0
    records, tensors = kept(folder)
    shutil.rmtree(folder / "checkpoints" / "step_00000006")
    assert main(["pretrain", *words]) == 0
    again, resumed = kept(folder)
    assert len(again) == len(records)
    for one, other in zip(records, again, strict=True):
        # Sums of a GPU may differ in their order, so nearly and not to the last bit.
        assert other == pytest.approx(one, rel=near, abs=near / 100)
    for name, group in tensors.items():
        assert resumed[name].keys() == group.keys()
        for key, tensor in group.items():
            torch.testing.assert_close(resumed[name][key], tensor, rtol=10 * near, atol=2 * near, msg=f"{name}: {key}")
