# SPDX-License-Identifier: Apache-2.0
"""The short scripts of `examples/` run as they stand."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.models.vision_transformer import VisionTransformer

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name):
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1), tmp_path / "w")
    return str(tmp_path / "w")


def test_features_of_one_image(weights, picture_folder):
    found = example("features").main(weights, str(picture_folder / "class0" / "00.png"))
    assert {name: tuple(one.shape) for name, one in found.items()} == {"cls": (1, 64), "patches": (1, 16, 64)}


def test_a_probe_in_scikit_learn(weights, picture_folder):
    pytest.importorskip("sklearn")
    assert example("sklearn_probe").main(weights, str(picture_folder), str(picture_folder)) > 0.5


def test_photographs_are_cleaned(weights, picture_folder, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(picture_folder / "class0", photos)
    shutil.copy(photos / "00.png", photos / "sub.png")
    moved = example("clean_photos").main(weights, str(photos), str(tmp_path / "spare"), "0.999999")
    assert [path.name for path in moved] == ["sub.png"]
    assert len(list(photos.iterdir())) == 10
    assert (tmp_path / "spare" / "duplicates.html").exists()
