# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
from PIL import Image

from opendino.checkpoint.weights import save_weights
from opendino.errors import ConfigError
from opendino.models.input_spec import InputSpec
from opendino.models.presets import create
from opendino.train.adapt_config import AdaptConfig
from opendino.train.adapt_plan import UNSAID, choices_by, plan_adaptation
from opendino.train.start import open_start


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights for three channels and images of 24 pixels, with a table for 32."""
    backbone = create("vit_nano4", depth=2, embed_dim=32, num_heads=2, img_size=32)
    backbone.input_spec = InputSpec((24, 24), 3, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    return save_weights(backbone, tmp_path_factory.mktemp("weights") / "model")


@pytest.fixture(scope="module")
def grey_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grey")
    for number in range(4):
        Image.new("L", (24, 24), 40 * number).save(folder / f"{number}.png")
    return folder


def planned(init, tmp_path, *words):
    return plan_adaptation(None, [f"init={init}", f"output_dir={tmp_path / 'out'}", "train.device=cpu", *words])


def test_a_phase_of_a_run_inherits_and_compresses(tiny_run, picture_folder, tmp_path):
    plan = planned(tiny_run, tmp_path, "resolution=32", "train.iterations=4")
    config = plan.config
    assert config.data == str(picture_folder), "its images"
    assert (config.student.img_size, config.crops.global_size, config.crops.local_size) == (32, 32, 16)
    assert (config.dino.prototypes, config.dino.centering, config.train.batch_size) == (32, "centering", 8)
    assert (config.optim.base_lr, config.train.iterations) == (pytest.approx(4e-4), 4)
    assert (config.student.drop_path_rate, config.student.embed_dim, config.student.patch_size) == (0.2, 32, 4)
    assert (config.adapt.head_steps, config.origin.kind, config.origin.step) == (0, "checkpoint", 6)
    shown = {key for key, choice in plan.choices.items() if choice.reason not in UNSAID}
    assert {"crops.global_size", "optim.base_lr"} <= shown
    assert not any(key.startswith(("origin.", "dino.")) for key in shown)


def test_lengths_in_steps_become_shares(tiny_run):
    start = open_start(str(tiny_run))
    longer = dataclasses.replace(
        start, settings={**start.settings, "train.iterations": 50_000, "optim.warmup": 5000, "teacher.temp_warmup": 0.3}
    )
    chosen = choices_by(longer, AdaptConfig(init="x"), {})
    assert chosen["optim.warmup"].value == 0.1
    assert "compressed" in chosen["optim.warmup"].reason
    assert chosen["teacher.temp_warmup"].value == 0.3
    assert chosen["train.iterations"].value == 10_000


def test_other_images_are_not_looked_at_by_those_of_the_run(tiny_run):
    start = open_start(str(tiny_run))
    looked = {**start.settings, "data": "cats", "knn.train": "cats", "knn.val": "cats_held_out", "knn.max_train": 9000}
    start = dataclasses.replace(start, settings=looked)
    same = choices_by(start, AdaptConfig(init="x", data="cats"), {})
    other = choices_by(start, AdaptConfig(init="x", data="dogs"), {})
    assert (same["knn.train"].value, same["knn.val"].value) == ("cats", "cats_held_out")
    assert set(same) - set(other) == {"knn.train", "knn.val"}
    assert "knn.max_train" not in same, "for this machine, chosen anew"


def test_what_only_distillation_leaves_out_comes_back(tiny_run):
    start = open_start(str(tiny_run))
    distilled = {**start.settings, "distill.teacher": "runs/large", "masks.probability": 0.0, "koleo.loss_weight": 0.0}
    chosen = choices_by(dataclasses.replace(start, settings=distilled), AdaptConfig(init="x"), {})
    assert "masks.probability" not in chosen
    assert "koleo.loss_weight" not in chosen
    assert chosen["masks.ratio"].value == [0.1, 0.5]


def test_words_win_over_what_follows(tiny_run, tmp_path):
    config = planned(tiny_run, tmp_path, "resolution=32", "crops.global_size=16", "optim.base_lr=7e-4").config
    assert (config.student.img_size, config.crops.global_size, config.optim.base_lr) == (32, 16, 7e-4)


def test_weights_get_new_heads_low_rates_and_a_slow_teacher(weights, picture_folder, tmp_path):
    config = planned(weights, tmp_path, f"data={picture_folder}").config
    assert (config.student.img_size, config.crops.global_size) == (32, 24), "the table stays, crops as they are used"
    assert config.crops.mean == (0.1, 0.2, 0.3)
    assert (config.adapt.head_steps, config.adapt.head_lr, config.optim.base_lr) == (0.1, 1e-3, 1e-4)
    assert config.teacher.momentum == (0.995, 1.0)
    assert (config.origin.kind, config.student.init_values, config.dino.centering) == ("weights", 1.0, "sinkhorn_knopp")
    assert config.optim.layerwise_decay == 0.9


def test_grey_images_are_shown_to_colour_weights_as_they_are(weights, grey_folder, tmp_path):
    config = planned(weights, tmp_path, f"data={grey_folder}").config
    assert (config.student.in_chans, config.crops.mean) == (3, (0.1, 0.2, 0.3))
    fitted = planned(weights, tmp_path, f"data={grey_folder}", "student.in_chans=1").config
    assert (fitted.student.in_chans, fitted.crops.mean, fitted.crops.std) == (1, (), ())


def test_a_continued_plan_asks_nobody(tiny_run, tmp_path):
    from opendino.train.adapt import adapt

    words = ["resolution=24", "train.iterations=1", "drift.sample=8"]
    first = planned(tiny_run, tmp_path, *words)
    adapt(first.config, {key: choice.value for key, choice in first.choices.items()})
    again = planned(tiny_run, tmp_path, *words)
    assert again.resumed
    assert again.config == first.config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resolution=30"], r"resolution = 30 is not a multiple of the patch size 4; use 28 or 32"),
        (["student.preset=vits14"], r"has .*embed_dim 32 and not 384.*leave student\.\* out"),
        (["student.patch_size=16"], "has patch_size 4 and not 16; leave"),
        (["adapt.start=checkpoint"], "is no run with a checkpoint"),
        (["student.depht=3"], r"did you mean student\.depth"),
    ],
)
def test_what_does_not_go_with_the_weights(weights, picture_folder, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        planned(weights, tmp_path, f"data={picture_folder}", *words)


def test_what_is_missing_is_said(weights, picture_folder, tmp_path):
    with pytest.raises(ConfigError, match="data is missing"):
        planned(weights, tmp_path)
    with pytest.raises(ConfigError, match="init is missing"):
        plan_adaptation(None, [f"data={picture_folder}", f"output_dir={tmp_path / 'out'}"])
