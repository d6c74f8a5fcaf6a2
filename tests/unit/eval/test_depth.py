# SPDX-License-Identifier: Apache-2.0
"""The protocol on scenes that are rendered here, so that their depth is known exactly."""

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.errors import ConfigError, DataError
from opendino.eval import depth
from opendino.eval._features import FeatureConfig
from opendino.eval.depth import DepthConfig, DepthDataConfig, DepthHeadConfig
from opendino.models.vision_transformer import VisionTransformer


def scene(rng, height=32, width=40):
    """A floor under a wall, and a box on it, all fading into fog: depth from the geometry, colour from the depth."""
    horizon, camera, wall = 10, 1.5, float(rng.uniform(6, 9))
    rows = np.arange(height)[:, None] - horizon
    z = np.where(rows > 0, camera * 20 / np.maximum(rows, 1e-3), wall)
    z = np.minimum(np.broadcast_to(z, (height, width)), wall).astype(np.float32).copy()
    left, size, near = int(rng.integers(4, 20)), int(rng.integers(8, 16)), float(rng.uniform(2, 5))
    bottom = min(int(horizon + camera * 20 / near), height)
    z[max(bottom - size, 0) : bottom, left : left + size] = near
    fog = np.exp(-z / 4)[..., None]
    colours = fog * np.array([220, 90, 40]) + (1 - fog) * np.array([120, 140, 200]) + rng.normal(0, 4, (*z.shape, 3))
    return colours.clip(0, 255).astype(np.uint8), z


@pytest.fixture
def home(tmp_path):
    rng = np.random.default_rng(0)
    for part, number in (("train", 8), ("val", 4)):
        for folder in ("images", "depth"):
            (tmp_path / part / folder).mkdir(parents=True)
        for i in range(number):
            picture, z = scene(rng)
            Image.fromarray(picture).save(tmp_path / part / "images" / f"{i}.png")
            np.save(tmp_path / part / "depth" / f"{i}.npy", (1000 * z).astype(np.float32))
    return tmp_path


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=64, depth=4, num_heads=1)


def config(home, data=None, **head):
    small = {"iterations": 25, "batch_size": 4, "lr": 0.05, "warmup": 2, "norm": True}
    data = {"train": str(home / "train"), "val": str(home / "val"), "scale": 1000.0, "max_depth": 10.0} | (data or {})
    return DepthConfig(
        DepthDataConfig(**data), DepthHeadConfig(**{**small, **head}), FeatureConfig(device="cpu", size=32)
    )


def constant_rmse(home):
    truth = {p: [np.load(f) / 1000 for f in sorted((home / p / "depth").iterdir())] for p in ("train", "val")}
    mean = np.mean(truth["train"])
    return float(np.mean([np.sqrt(np.mean((z - mean) ** 2)) for z in truth["val"]]))


def test_a_linear_head_beats_a_constant_by_far_and_is_read_again(home, backbone):
    results = depth.run(backbone, config(home, head="lin4"), out=home / "out")
    assert results.figures["rmse"] < 0.7 * constant_rmse(home)
    assert results.data["range"] == [0.001, 10.0]
    assert results.data["val_images"] == 4
    (head,) = (home / "out").glob("*.safetensors")
    again = depth.run(backbone, config(home, {"train": ""}, head="lin4", weights=str(head)))
    assert again.figures == pytest.approx(results.figures)


def test_the_range_is_that_of_the_data_not_of_the_file(home, backbone):
    """What the published hub code gets wrong: bins of 80 metres for a head that learned 10."""
    trained = depth.run(backbone, config(home, head="lin1", iterations=2), out=home / "out")
    (head,) = (home / "out").glob("*.safetensors")
    far = depth.run(backbone, config(home, {"max_depth": 80.0}, head="lin1", weights=str(head)))
    assert far.data["range"] == [0.001, 80.0]
    assert far.figures["rmse"] > 4 * trained.figures["rmse"]
    with pytest.raises(ConfigError, match=r"data\.max_depth = None: the range of depths is not known"):
        depth.run(backbone, config(home, {"max_depth": None}))
    assert DepthDataConfig(layout="kitti").limits() == (0.001, 80.0)
    assert DepthDataConfig(layout="nyu").limits() == (0.001, 10.0)


def test_the_decoder_learns_too(home, backbone):
    torch.manual_seed(0)
    estimator = depth.Estimator(backbone, config(home, head="dpt"))
    image = np.random.default_rng(0).random((20, 30, 3), np.float32)
    with torch.no_grad():
        found = estimator.predict(image)
        mirrored = estimator.predict(np.ascontiguousarray(image[:, ::-1]))
    assert found.shape == (20, 30)
    # Padding of an odd width is not symmetric, of an even one it is: 30 = 8 * 4 - 2.
    torch.testing.assert_close(found, mirrored.flip(1), rtol=0, atol=1e-4)
    assert float(found.min()) >= 0.001


def test_mistakes_are_named(home, backbone):
    with pytest.raises(DataError, match=r"a step has no depth above 0 and up to 10; see data\.scale"):
        depth.run(backbone, config(home, {"scale": 1.0}))
    with pytest.raises(ConfigError, match=r"data\.train is missing"):
        depth.run(backbone, config(home, {"train": ""}))
    np.save(home / "train" / "depth" / "0.npy", np.ones((4, 4), np.float32))
    with pytest.raises(DataError, match="they have to be of one size"):
        depth.run(backbone, config(home))
    shallow = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1)
    with pytest.raises(ConfigError, match="reads 4 layers, the model gives 2; use lin1"):
        depth.run(shallow, config(home))
