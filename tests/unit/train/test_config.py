# SPDX-License-Identifier: Apache-2.0
import dataclasses
import logging
import typing

import pytest

from opendino.config import fields_of, load
from opendino.data.fast import choose_decoder
from opendino.data.loaders import LoaderConfig
from opendino.errors import ConfigError, OpendinoError
from opendino.train.config import PretrainConfig, TrainConfig, check, check_settings, fill_in


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
        "data output_dir seed images student teacher dino ibot koleo masks crops optim train parallel loader "
        "checkpoint knn watch log"
    )


def test_places_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    words = ["data=~/a", "output_dir=~/b", "knn.train=~/c", "knn.val=~/d"]
    found = load(PretrainConfig, None, words)
    assert [found.data, found.output_dir, found.knn.train, found.knn.val] == [f"/home/ada/{name}" for name in "abcd"]


def test_epochs_set_the_iterations(config):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=2.5))
    assert fill_in(config, 40).train.iterations == 13  # 100 images in batches of 8
    assert fill_in(fill_in(config, 40), 40) == fill_in(config, 40)
    with pytest.raises(ConfigError, match=r"optim\.warmup = 20 .* run of 13"):
        fill_in(dataclasses.replace(config, optim=dataclasses.replace(config.optim, warmup=20)), 40)


def test_filled_in_settings_hold_what_follows_from_others(config):
    student = fill_in(config, 40).student
    assert (student.img_size, student.in_chans, student.init_values) == (16, 3, 0.1)


def test_more_images_a_batch_than_there_are(config, caplog):
    logging.getLogger("opendino").propagate = True
    fill_in(config, 5)
    assert "train.batch_size = 8 is more than the 5 images" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1}, r"train\.batch_size = 1"),
        ({"iterations": 0}, r"train\.iterations = 0"),
        ({"epochs": -1.0}, r"train\.epochs = -1"),
        ({"threads": -2}, r"train\.threads = -2"),
        ({"accumulate": 0}, r"train\.accumulate = 0"),
        ({"max_not_finite": -1}, r"train\.max_not_finite = -1"),
    ],
)
def test_impossible_lengths(change, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**change)


def test_check_counts_the_students_parameters(config):
    backbone = fill_in(config, 40).student.build()
    assert check_settings(config) == sum(parameter.numel() for parameter in backbone.parameters())


def test_checks_before_the_images(config):
    check(config)
    with pytest.raises(ConfigError, match="data is missing"):
        check(dataclasses.replace(config, data=""))
    with pytest.raises(ConfigError, match="output_dir is missing"):
        check(dataclasses.replace(config, output_dir=""))
    passes = dataclasses.replace(config.train, accumulate=3)
    with pytest.raises(ConfigError, match=r"train\.batch_size = 8 .* in 3 passes each .*use a multiple of 3"):
        check(dataclasses.replace(config, train=passes))


SMALL = [
    "student.preset=vit_nano4",
    "crops.global_size=16",
    "crops.local_size=8",
    "ibot.separate_head=true",
    "dino.prototypes=8",
    "dino.hidden_dim=8",
    "dino.bottleneck_dim=4",
    "ibot.prototypes=8",
    "ibot.hidden_dim=8",
    "ibot.bottleneck_dim=4",
]
BELOW_ZERO = {"seed", "loader.workers", "images.value_range", "crops.mean"}
"""Settings of which a negative number is one."""
AT_ZERO = [
    "student.img_size",
    "student.patch_size",
    "student.in_chans",
    "student.embed_dim",
    "student.depth",
    "student.num_heads",
    "student.mlp_ratio",
    "dino.prototypes",
    "dino.hidden_dim",
    "dino.bottleneck_dim",
    "dino.nlayers",
    "ibot.prototypes",
    "ibot.hidden_dim",
    "ibot.bottleneck_dim",
    "ibot.nlayers",
    "teacher.temp",
    "masks.min_block",
    "masks.aspect",
    "crops.global_size",
    "crops.local_size",
    "crops.global_scale",
    "crops.aspect",
    "crops.std",
    "optim.lr_reference_batch",
    "train.batch_size",
    "train.iterations",
    "train.accumulate",
    "loader.prefetch",
    "checkpoint.every",
    "checkpoint.keep",
    "knn.k",
    "knn.temperature",
    "knn.max_train",
    "knn.max_val",
    "log.every",
]
"""Settings of which 0 is none."""


def takes(hint, kinds):
    return hint in kinds or any(takes(part, kinds) for part in typing.get_args(hint))


def numeric_settings(cls=PretrainConfig, prefix=""):
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from numeric_settings(hint, f"{prefix}{name}.")
        elif takes(hint, (int, float)):
            yield pytest.param(f"{prefix}{name}", hint, id=f"{prefix}{name}")


def is_refused(key, value):
    """Whether settings are refused, by the name of what is wrong; any other exception fails the test."""
    try:
        words = [word for word in SMALL if not word.startswith(f"{key}=")]
        check_settings(load(PretrainConfig, None, [*words, f"{key}={value}"]))
    except OpendinoError as error:
        assert key.rpartition(".")[2] in str(error), f"{key}={value}: {error}"
        return True
    return False


@pytest.mark.parametrize(("key", "hint"), list(numeric_settings()))
def test_impossible_numbers_are_refused_by_name(key, hint):
    """No traceback and no silence, whatever number is given to whatever setting, alone or in a list."""
    lists = [part for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is tuple]
    make = ("[{}]" if any(... in typing.get_args(part) for part in lists) else "[{}, 1]" if lists else "{}").format
    assert is_refused(key, make(".nan"))
    assert is_refused(key, make(".inf"))
    assert is_refused(key, make("true"))
    assert is_refused(key, make(-1)) or key in BELOW_ZERO
    assert is_refused(key, make(0)) or key not in AT_ZERO


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.threads=100000", r"train\.threads = 100000 is out of its range; use 0 to 1024"),
        ("train.epochs=.inf", r"train\.epochs = inf is out of its range"),
        ("train.epochs=.nan", r"train\.epochs = nan: is no number"),
        ("images.value_range=[1, 1]", r"images\.value_range = \[1\.0, 1\.0\] is no range"),
        ("images.value_range=[4, 3]", r"images\.value_range = \[4\.0, 3\.0\] is no range"),
        ("loader.min_bad_count=-1", r"loader\.min_bad_count = -1 is out of its range"),
        ("knn.k=[]", r"knn\.k = \[\]: give at least one"),
        ("student.patch_size=0", r"student: backbone\.patch_size = 0 is out of its range"),
        ("student.mlp_ratio=0.001", r"mlp_ratio=0\.001 leaves no hidden width"),
    ],
)
def test_settings_that_once_were_accepted(word, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(load(PretrainConfig, None, [*SMALL, word]))


def test_auto_is_written_down_as_the_decoder_that_was_taken(config):
    auto = dataclasses.replace(config, loader=LoaderConfig(decoder="auto"))
    assert fill_in(auto, 40).loader.decoder == choose_decoder("auto").decoder
    assert fill_in(config, 40).loader.decoder == "pillow"
