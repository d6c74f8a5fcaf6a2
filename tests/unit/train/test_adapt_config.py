# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from opendino.config import load, to_yaml
from opendino.errors import ConfigError
from opendino.train.adapt_config import AdaptConfig, check_adaptation, typed
from opendino.train.config import PretrainConfig


def test_settings_survive_the_way_through_yaml(tmp_path):
    config = load(AdaptConfig, None, ["resolution=60", "adapt.head_steps=0.25", "train.iterations=40", "origin.step=7"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(AdaptConfig, tmp_path / "config.yaml") == config
    assert (config.head_steps, typed(config)) == (10, config)
    with pytest.raises(TypeError, match="a PretrainConfig came"):
        typed(PretrainConfig())


RECIPES = sorted((Path(__file__).parents[3] / "configs" / "adapt").glob("*.yaml"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("adapt.head_steps=1.0", r"adapt\.head_steps = 1\.0 leaves none of 125000 steps to the backbone"),
        ("adapt.head_steps=10 train.iterations=5", "is longer than the run of 5"),
        ("adapt.head_steps=1 dino.loss_weight=0 ibot.loss_weight=0", "there are none; use 0"),
        ("adapt.head_lr=1e-3 optim.base_lr=0", r"optim\.base_lr = 0 with adapt\.head_lr"),
        (
            "adapt.head_steps=4 train.iterations=10 optim.warmup=7",
            r"optim\.warmup = 7 steps is longer than the run of 6",
        ),
        ("adapt.lora=-1", r"adapt\.lora = -1 is out of its range"),
        ("adapt.lora_layers=attn(", r"adapt\.lora_layers = attn\( is no regular expression"),
        ("adapt.channels=best", r"adapt\.channels = 'best': input should be 'auto', 'mean', 'repeat' or 'keep'"),
        ("resolution=-14", r"resolution = -14 is out of its range"),
        ("drift.limit=2", r"drift\.limit = 2\.0 is out of its range"),
        ("adapt.head_step=3", r"did you mean adapt\.head_steps"),
    ],
)
def test_contradictions_are_one_sentence(words, message):
    with pytest.raises(ConfigError, match=message):
        check_adaptation(load(AdaptConfig, None, words.split()))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load(path):
    config = load(AdaptConfig, path)
    check_adaptation(config)
    assert config.resolution or config.adapt.head_steps, "a recipe says what is done"


def test_the_home_is_opened(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    config = load(AdaptConfig, None, ["init=~/run", "adapt.held_out=~/images"])
    assert (config.init, config.adapt.held_out) == ("/somewhere/run", "/somewhere/images")
