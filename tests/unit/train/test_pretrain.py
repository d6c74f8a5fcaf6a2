# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from opendino.config import load, to_yaml
from opendino.errors import ConfigError, TrainingError
from opendino.train import loop
from opendino.train import pretrain as module
from opendino.train.config import PretrainConfig
from opendino.train.pretrain import open_images, pretrain


@pytest.fixture
def config(tiny_words):
    return load(PretrainConfig, None, tiny_words)


def test_how_images_are_read_is_handed_on(config):
    images = dataclasses.replace(config.images, value_range=(0.0, 4095.0), orient=False, label_column="none")
    student = dataclasses.replace(config.student, in_chans=1)
    dataset = open_images(dataclasses.replace(config, images=images, student=student))
    assert (dataset.options.value_range, dataset.options.orient, dataset.options.channels) == ((0.0, 4095.0), False, 1)


@pytest.mark.parametrize("ahead", [True, False])
def test_going_ahead_can_be_switched_off(config, monkeypatch, ahead):
    """On a device where it works, which `can_go_ahead` says of GPUs alone."""
    monkeypatch.setattr(module, "can_go_ahead", lambda run: True)
    went = []
    step = loop.step_ahead
    monkeypatch.setattr(loop, "step_ahead", lambda run, batch: went.append(run.step) or step(run, batch))
    pretrain(dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, ahead=ahead)))
    assert went == (list(range(6)) if ahead else [])


def test_a_run_leaves_what_it_says(config):
    outcome = pretrain(dataclasses.replace(config, log=dataclasses.replace(config.log, picture=True)), {"seed": 0})
    folder = Path(config.output_dir)
    assert (outcome.output_dir, outcome.steps, outcome.images_seen, outcome.figures) == (folder, 6, 48, {})
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "run.json", "metrics.jsonl", "first_batch.png", "checkpoints", "weights",
    }  # fmt: skip
    again = load(PretrainConfig, folder / "config.yaml")
    assert to_yaml(again) == (folder / "config.yaml").read_text()
    assert again.student.img_size == 16
    run = json.loads((folder / "run.json").read_text())
    assert (run["chosen"], run["facts"]) == ({"seed": 0}, {"images": 40, "threads": 1, "processes": 1, "device": "cpu"})


def test_seconds_are_counted_over_all_processes(config, monkeypatch):
    """A clock that moves a second a look: what the first process took until its last checkpoint is not lost."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))
    first = pretrain(config)
    assert first.seconds_before == 0
    shutil.rmtree(first.output_dir / "checkpoints" / "step_00000006")
    meta = json.loads((first.output_dir / "checkpoints" / "step_00000004" / "state.json").read_text())["meta"]
    assert 0 < meta["seconds"] < first.seconds
    second = pretrain(config)
    assert second.seconds_before == meta["seconds"]
    third = pretrain(config)
    assert third.steps == 6
    assert third.seconds_before > second.seconds_before + second.seconds / 2
    assert third.seconds < 10


def test_threads_are_kept_for_a_resume(config, monkeypatch):
    free = dataclasses.replace(config, train=dataclasses.replace(config.train, threads=0))
    monkeypatch.setattr(module, "choose_threads", lambda wanted, cores, work: work() or 1)
    pretrain(free)
    monkeypatch.setattr(module, "choose_threads", lambda *_: pytest.fail("chosen again"))
    pretrain(free)
    assert torch.get_num_threads() == 1


def test_threads_found_elsewhere_are_not_taken(config, monkeypatch):
    free = dataclasses.replace(config, train=dataclasses.replace(config.train, threads=0, device="cpu"))
    run = module.build_run(free)
    monkeypatch.setattr(module, "choose_threads", lambda *_: 3)
    for facts, threads in (
        ({"device": "cpu", "processes": 1}, 7),
        ({"device": "cuda", "processes": 1}, 3),
        ({"device": "cpu", "processes": 2}, 3),
        ({}, 7),
    ):
        stored = module.Stored({}, {}, {"threads": 7} | facts)
        assert module._threads(free, run, stored) == threads, facts


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_threads_are_tried_in_the_precision_of_the_run(config, monkeypatch, precision):
    train = dataclasses.replace(config.train, threads=0, precision=precision)
    run = module.build_run(dataclasses.replace(config, train=train))
    seen = []
    run.method.student["backbone"].register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    monkeypatch.setattr(module, "choose_threads", lambda wanted, cores, work: work() or 3)
    assert module._threads(dataclasses.replace(config, train=train), run, None) == 3
    assert seen == [precision == "bf16"]


def test_processes_take_the_threads_of_the_main_one(config, monkeypatch):
    monkeypatch.setattr(module, "_threads", lambda *_: 2)
    said, taken = [], []
    monkeypatch.setattr(module, "is_main", lambda: False)
    monkeypatch.setattr(module, "largest", lambda *values: said.append(values) or (1,))
    monkeypatch.setattr(module.torch, "set_num_threads", lambda threads: taken.append(threads))
    with pytest.raises(ConfigError, match="enough"):
        monkeypatch.setattr(module, "_lay_out", refuse)
        pretrain(config)
    assert said[-1] == (-1,)
    assert taken[-1] == 1


def refuse(*_):
    raise ConfigError("that is enough")


def test_a_trial_of_threads_leaves_the_run_alone(config, monkeypatch):
    """Gradients of the trial are gone before the first step."""
    monkeypatch.setattr(module, "choose_threads", lambda wanted, cores, work: work() or 1)
    pretrain(config)
    monkeypatch.setattr(module, "choose_threads", lambda wanted, cores, work: 1)
    other = dataclasses.replace(config, output_dir=f"{config.output_dir}2")
    pretrain(other)
    losses = [
        [json.loads(line).get("loss") for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        for folder in (config.output_dir, other.output_dir)
    ]
    assert losses[0] == losses[1]


def test_no_memory_is_said_plainly(config, monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(module, "train", no_memory)
    with pytest.raises(TrainingError, match=r"out of memory on cpu with train\.batch_size = 8; use fewer"):
        pretrain(config)
    assert not Path(config.output_dir).exists()
