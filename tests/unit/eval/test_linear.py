# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from opendino.errors import ConfigError
from opendino.eval import linear
from opendino.eval._data import LabelledConfig, open_pair
from opendino.eval._features import FeatureConfig
from opendino.eval._test_sets import TestSetsConfig
from opendino.eval.linear import HeadsConfig, LinearConfig
from opendino.models.vision_transformer import VisionTransformer

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home, rng = tmp_path_factory.mktemp("linear"), np.random.default_rng(0)
    for part, each in (("train", 8), ("val", 4), ("other", 4)):
        for name, colour in COLOURS.items():
            (home / part / name).mkdir(parents=True)
            for i in range(each):
                pixels = np.clip(colour + rng.normal(0, 25, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(home / part / name / f"{i}.png")
    (home / "real.json").write_text(str([[0, 1, 2]] * 12))
    return home


@pytest.fixture
def backbone():
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=2, num_heads=1)


def config(home, **heads):
    fast = {"lrs": (0.01, 0.5), "iterations": 12, "batch_size": 16, "every": 4}
    return LinearConfig(
        LabelledConfig(str(home / "train"), str(home / "val")),
        HeadsConfig(**{**fast, **heads}),
        FeatureConfig(device="cpu", workers=0),
        TestSetsConfig((str(home / "other"),), real=str(home / "real.json")),
    )


@pytest.mark.parametrize("augment", [False, True])
def test_colours_are_learned_and_everything_is_reported(home, backbone, tmp_path, augment):
    results = linear.run(backbone, config(home, augment=augment), out=tmp_path)
    assert results.figures["top1"] == 100.0
    assert results.figures["other_top1"] == 100.0
    assert results.figures["real"] == 100.0
    # Two blocks are all there are: 2 rates x 2 block counts x 2 poolings.
    assert len(results.data["heads"]) == 8
    assert results.data["best"] in results.data["heads"]
    assert results.data["heads"][results.data["best"]] == max(results.data["heads"].values()) == 100.0
    assert any("centre crops" in note for note in results.notes) == (not augment)


@pytest.mark.parametrize("augment", [False, True])
def test_a_stopped_run_goes_on_to_the_same_weights(home, backbone, tmp_path, augment, monkeypatch):
    settings = config(home, augment=augment)
    pair = open_pair(settings.data)
    whole, _ = linear.train(backbone, pair, settings, None, "x")
    real = linear.Heads.step

    def stop(self, *args):
        stop.steps += 1
        if stop.steps == 7:
            raise KeyboardInterrupt
        return real(self, *args)

    stop.steps = 0
    monkeypatch.setattr(linear.Heads, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        linear.train(backbone, pair, settings, tmp_path, "x")
    stop.steps = 100
    again, _ = linear.train(backbone, pair, settings, tmp_path, "x")
    assert stop.steps == 108  # four of the twelve steps were kept
    for name, tensor in whole.state.items():
        torch.testing.assert_close(again.state[name], tensor, rtol=0, atol=0)
    (file,) = tmp_path.glob("linear-*.safetensors")
    file.write_bytes(b"broken")
    with pytest.raises(ConfigError, match="cannot be continued"):
        linear.train(backbone, pair, settings, tmp_path, "x")


def test_an_epoch_shows_each_image_once():
    rows = np.concatenate([linear.rows_of(step, 10, 4, 3) for step in range(5)])
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert list(rows[:10]) != list(rows[10:])


def test_settings_that_make_no_sense():
    with pytest.raises(ConfigError, match="at least one positive value"):
        HeadsConfig(lrs=())
    with pytest.raises(ConfigError, match="1 or more steps"):
        HeadsConfig(iterations=0)
