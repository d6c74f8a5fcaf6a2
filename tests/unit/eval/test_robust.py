# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from opendino.data.datasets import open_dataset
from opendino.data.transforms import EvalTransform
from opendino.errors import ConfigError
from opendino.eval import robust
from opendino.eval._data import LabelledConfig
from opendino.eval._features import FeatureConfig
from opendino.eval._test_sets import TestSetsConfig
from opendino.eval.linear import HeadsConfig
from opendino.eval.robust import Corrupted, CorruptionConfig, RobustConfig
from opendino.models.vision_transformer import VisionTransformer

COLOURS = {"blue": (40, 60, 200), "red": (200, 50, 40)}


@pytest.fixture
def home(tmp_path):
    rng = np.random.default_rng(0)
    for part, each in (("train", 6), ("val", 4), ("shifted", 2)):
        for name, colour in COLOURS.items():
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(each):
                pixels = np.clip(colour + rng.normal(0, 15, (20, 18, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def test_errors_of_kinds_and_their_mean(home):
    backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1)
    config = RobustConfig(
        LabelledConfig(str(home / "train"), str(home / "val")),
        CorruptionConfig(("contrast", "brightness"), (1, 5)),
        HeadsConfig(lrs=(0.1,), iterations=12, batch_size=8, augment=False, every=0),
        FeatureConfig(device="cpu", cache=str(home / "kept")),
        TestSetsConfig((str(home / "shifted"),)),
    )
    found = robust.run(backbone, config, out=home / "out").figures
    assert found["clean_top1"] == found["shifted_top1"] == 100
    errors = [found["error_contrast"], found["error_brightness"]]
    assert found["mean_error"] == pytest.approx(np.mean(errors))
    assert found["mCE"] == pytest.approx(100 * np.mean([errors[0] / 85.3, errors[1] / 56.5]))
    assert len(list((home / "kept").iterdir())) == 3  # train, val, shifted: nothing corrupted is kept


def test_corruption_comes_after_framing(home):
    data = open_dataset(home / "val")
    seen = Corrupted(data, EvalTransform(16, 16), "gaussian_noise", 1, 0)
    assert seen.image(0).size == (16, 16)
    assert seen.image(0).tobytes() == seen.image(0).tobytes()
    assert seen.image(0).tobytes() != seen.image(1).tobytes()
    assert seen.identify(0) == data.identify(0)
    assert len(seen) == 8


def test_settings_that_make_no_sense():
    with pytest.raises(ConfigError, match="choose from gaussian_noise"):
        CorruptionConfig(("rain",))
    with pytest.raises(ConfigError, match="from 1 to 5"):
        CorruptionConfig(severities=(0,))
