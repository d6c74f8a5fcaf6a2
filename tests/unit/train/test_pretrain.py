# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from opendino.config import fields_of, load, to_yaml
from opendino.errors import ConfigError, TrainingError
from opendino.train import pretrain as module
from opendino.train.pretrain import PretrainConfig, TrainConfig, check, check_settings, open_images, pretrain, settle


@pytest.fixture
def config(tiny_words):
    return load(PretrainConfig, None, tiny_words)


def test_defaults_are_the_published_short_run():
    """Facts 4.1 and 4.2, where the files of the parts do not say them themselves."""
    config = PretrainConfig()
    assert (config.train.batch_size, config.train.iterations) == (2048, 125_000)
    assert (config.crops.global_size, config.crops.local_number, config.dino.prototypes) == (224, 8, 65_536)
    assert (config.optim.clip_grad, config.koleo.loss_weight) == (3.0, 0.1)


def test_groups_of_the_settings():
    groups = list(dict.fromkeys(name.partition(".")[0] for name in fields_of(PretrainConfig)))
    assert " ".join(groups) == (
        "data output_dir seed images student teacher dino ibot koleo masks crops optim train loader checkpoint knn log"
    )


def test_epochs_set_the_iterations(config):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=2.5))
    assert settle(config, 40).train.iterations == 13  # 100 images in batches of 8
    assert settle(settle(config, 40), 40) == settle(config, 40)
    with pytest.raises(ConfigError, match=r"optim\.warmup = 20 .* run of 13"):
        settle(dataclasses.replace(config, optim=dataclasses.replace(config.optim, warmup=20)), 40)


def test_settled_settings_hold_what_follows_from_others(config):
    student = settle(config, 40).student
    assert (student.img_size, student.in_chans, student.init_values) == (16, 3, 0.1)


def test_more_images_a_batch_than_there_are(config, caplog):
    import logging

    logging.getLogger("opendino").propagate = True
    settle(config, 5)
    assert "train.batch_size = 8 is more than the 5 images" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1}, r"train\.batch_size = 1"),
        ({"iterations": 0}, r"train\.iterations = 0"),
        ({"epochs": -1.0}, r"train\.epochs = -1"),
        ({"threads": -2}, r"train\.threads = -2"),
    ],
)
def test_impossible_lengths(change, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**change)


def test_check_counts_the_students_parameters(config):
    backbone = settle(config, 40).student.build()
    assert check_settings(config) == sum(parameter.numel() for parameter in backbone.parameters())


def test_checks_before_the_images(config, monkeypatch):
    check(config)
    with pytest.raises(ConfigError, match="data is missing"):
        check(dataclasses.replace(config, data=""))
    with pytest.raises(ConfigError, match="output_dir is missing"):
        check(dataclasses.replace(config, output_dir=""))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        check(config)


def test_how_images_are_read_is_handed_on(config):
    images = dataclasses.replace(config.images, value_range=(0.0, 4095.0), orient=False, label_column="none")
    student = dataclasses.replace(config.student, in_chans=1)
    dataset = open_images(dataclasses.replace(config, images=images, student=student))
    assert (dataset.options.value_range, dataset.options.orient, dataset.options.channels) == ((0.0, 4095.0), False, 1)


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
    assert (run["chosen"], run["facts"]) == ({"seed": 0}, {"images": 40, "threads": 1})


def test_threads_are_kept_for_a_resume(config, monkeypatch):
    free = dataclasses.replace(config, train=dataclasses.replace(config.train, threads=0))
    monkeypatch.setattr(module, "choose_threads", lambda wanted, cores, work: work() or 1)
    pretrain(free)
    monkeypatch.setattr(module, "choose_threads", lambda *_: pytest.fail("chosen again"))
    pretrain(free)
    assert torch.get_num_threads() == 1


def test_a_trial_of_threads_leaves_the_run_alone(config, monkeypatch):
    """Gradients of the trial are gone before the first step."""
    monkeypatch.setattr(module, "choose_threads", lambda wanted, cores, work: work() or 1)
    pretrain(config)
    monkeypatch.setattr(module, "choose_threads", lambda wanted, cores, work: 1)
    other = dataclasses.replace(config, output_dir=f"{config.output_dir}2")
    pretrain(other)
    losses = [
        [json.loads(line)["loss"] for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
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
