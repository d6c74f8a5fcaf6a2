# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass

import numpy as np
import pytest

from opendino.errors import ConfigError, DataError
from opendino.train.adapt_plan import plan_adaptation
from opendino.train.config import PretrainConfig
from opendino.train.distill import plan_distill
from opendino.train.plan import plan
from opendino.train.pretrain import open_images, pretrain
from opendino.train.settings import Choice


@pytest.fixture
def words(picture_folder, tmp_path):
    return [f"data={picture_folder}", f"output_dir={tmp_path / 'run'}", "train.device=cpu"]


def test_without_a_recipe_what_fits_is_chosen(words):
    planned = plan(None, words)
    assert planned.config.crops.global_size == 24
    assert planned.choices["crops.global_size"].value == 24
    assert "24 pixels" in planned.choices["crops.global_size"].reason
    assert not planned.resumed


def test_order_of_the_sources(words, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 4\ntrain: {iterations: 50, precision: bf16}\noptim: {base_lr: 2e-4}\n")
    planned = plan(recipe, [*words, "train.iterations=60"])
    config = planned.config
    # word, recipe, chosen for the machine, default
    assert (config.train.iterations, config.seed, config.train.precision) == (60, 4, "bf16")
    assert "train.precision" not in planned.choices
    assert config.crops.global_size == 24, "the recipe names no model, so it is put over what would be chosen"
    recipe.write_text("student: {preset: vits14}\ntrain: {iterations: 50}\n")
    config = plan(recipe, words).config
    assert config.crops.global_size == 224, "a recipe with a model means what it says, whatever the images"


def test_deep_pixels_are_read_in_the_range_that_is_chosen_for_them(tmp_path):
    (tmp_path / "arrays").mkdir()
    for number in range(4):
        np.save(tmp_path / "arrays" / f"{number}.npy", np.full((24, 24, 5), 4000 - number, dtype=np.uint16))
    planned = plan(None, [f"data={tmp_path / 'arrays'}", f"output_dir={tmp_path / 'run'}"])
    assert planned.config.images.value_range == (0, 4095)
    assert "3997 to 4000" in planned.choices["images.value_range"].reason
    image = open_images(planned.config, planned.dataset).image(0)
    assert float(np.asarray(image).max()) == pytest.approx(4000 / 4095)


def test_mistakes_show_before_the_images_are_opened(words, tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean crops\.global_size"):
        plan(None, [f"data={tmp_path / 'nowhere'}", words[1], "crops.globl_size=1"])
    with pytest.raises(DataError, match="nowhere"):
        plan(None, [f"data={tmp_path / 'nowhere'}", words[1]])


def test_a_folder_of_another_kind_of_run_shows_before_settings_do(words, tmp_path, tiny_run):
    with pytest.raises(ConfigError, match="holds a run of opendino pretrain, which opendino distill cannot continue"):
        plan_distill(None, [words[0], f"output_dir={tiny_run}", "distill.teacher=nowhere", "train.iterations=3"])
    with pytest.raises(ConfigError, match="holds a run of opendino pretrain, which opendino adapt cannot continue"):
        plan_adaptation(None, [f"output_dir={tiny_run}", f"init={tiny_run}"])


def test_words_that_are_no_settings(words):
    with pytest.raises(ConfigError, match="'nonsense' is not a setting"):
        plan(None, [*words, "nonsense"])


@pytest.mark.parametrize(("left_out", "message"), [(0, "data is missing"), (1, "output_dir is missing")])
def test_what_must_be_said(words, left_out, message):
    with pytest.raises(ConfigError, match=message):
        plan(None, [word for place, word in enumerate(words) if place != left_out])


def test_a_resumed_run_keeps_what_was_chosen_for_it(tiny_words, monkeypatch):
    """Another machine would choose otherwise; the run goes on as it began."""
    words = [word for word in tiny_words if not word.startswith("loader.workers")]
    from opendino.train import plan as module
    from opendino.train.facts import MachineFacts

    monkeypatch.setattr(module, "look_at_machine", lambda device: MachineFacts("cpu", cores=1))
    first = plan(None, words)
    pretrain(first.config, {key: choice.value for key, choice in first.choices.items()})
    monkeypatch.setattr(module, "look_at_machine", lambda device: MachineFacts("cpu", cores=64))
    again = plan(None, words)
    assert again.resumed
    assert again.config.loader.workers == first.config.loader.workers == 0
    assert again.choices.keys() == first.choices.keys()
    assert plan(None, [*words, "loader.workers=3"]).config.loader.workers == 3


def test_another_kind_of_training_adds_settings_and_choices(words):
    @dataclass(frozen=True)
    class Kind(PretrainConfig):
        extra: int = 0

    def more(first, given):
        assert isinstance(first, Kind)
        return {"student.patch_size": Choice(8, "said so"), "seed": Choice(9, "not asked"), "extra": Choice(3, "is")}

    planned = plan(None, [*words, "seed=2"], Kind, more)
    assert (planned.config.extra, planned.config.seed) == (3, 2)
    assert "seed" not in planned.choices
    # What follows from it follows from the further choice: three by three patches of 8 in images of 24.
    assert planned.config.student.patch_size == 8
    assert planned.config.crops.local_size % 8 == 0
