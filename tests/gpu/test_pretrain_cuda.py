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
from opendino.config import load
from opendino.train import loop
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.loop import can_go_ahead
from opendino.train.pretrain import build_feed, build_run, open_images

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


@pytest.mark.parametrize(
    "words",
    [
        ["dino.centering=centering", "ibot.separate_head=true"],
        ["dino.centering=sinkhorn_knopp", "student.drop_path_rate=0.3", "train.accumulate=2"],
        ["dino.objective=coding_rate"],
    ],
    ids=str,
)
def test_no_step_waits_for_the_device(tiny_words, words):
    """Torch itself raises where anything but the reading of figures would wait."""
    config = load(PretrainConfig, None, [*tiny_words, "train.device=cuda", "train.precision=bf16", *words])
    dataset = open_images(config)
    config = fill_in(config, len(dataset))
    run = build_run(config)
    run.accumulate = config.train.accumulate
    assert can_go_ahead(run)
    feed = build_feed(config, dataset, run.device, 0)
    loop.step_ahead(run, next(feed))  # the first step makes the optimizer's moments and loads kernels
    taken = []
    for _ in range(3):
        batch = next(feed)
        assert batch.padding is not None
        torch.cuda.set_sync_debug_mode("error")
        try:
            taken.append(loop.step_ahead(run, batch))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(value) for step in taken for value in step.record().values())


def test_a_step_that_is_not_finite_is_left_out_by_the_device(tiny_words):
    config = load(PretrainConfig, None, [*tiny_words, "train.device=cuda", "dino.centering=centering"])
    dataset = open_images(config)
    run = build_run(fill_in(config, len(dataset)))
    feed = build_feed(config, dataset, run.device, 0)
    loop.step_ahead(run, next(feed))
    batch = next(feed)
    batch.global_crops[:, 0, 0, 0] = float("nan")
    before = {name: value.clone() for name, value in run.method.state_dict().items()}
    with pytest.raises(loop.NotFinite):
        loop.step_ahead(run, batch).record()
    assert all(torch.equal(value, before[name]) for name, value in run.method.state_dict().items())
