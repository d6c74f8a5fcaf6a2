# SPDX-License-Identifier: Apache-2.0
"""The short scripts and notebooks of `examples/` run as they stand."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


def test_parts_of_an_image_are_named_and_painted(weights, tmp_path):
    """Left halves bright, right halves dark: any patch features tell them apart."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / part / kind).mkdir(parents=True)
        for row in range(3):
            edge = 16 + 4 * row
            mask = np.zeros((32, 48), dtype=np.uint8)
            mask[:, edge:] = 1
            pixels = np.where(mask[..., None] == 1, 40, 215) + rng.integers(-20, 20, (32, 48, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / part / "images" / f"{row}.png")
            Image.fromarray(mask).save(tmp_path / part / "masks" / f"{row}.png")
    iou = example("segment_and_look").main(
        weights, str(tmp_path / "train"), str(tmp_path / "val"), str(tmp_path / "out"), steps=60
    )
    assert iou > 0.95
    with Image.open(tmp_path / "out" / "0002.png") as sheet:
        assert sheet.height * 6 == sheet.width  # image, map, truth and guess of 48 x 32


def test_a_classifier_through_trainer(weights, picture_folder, tmp_path):
    pytest.importorskip("accelerate")
    data, out = str(picture_folder), tmp_path / "classifier"
    assert example("finetune_trainer").main(weights, data, data, str(out), epochs=6, lr=3e-3) > 0.5
    from transformers import AutoModelForImageClassification

    again = AutoModelForImageClassification.from_pretrained(out)
    assert list(again.config.id2label.values()) == ["class0", "class1", "class2", "class3"]


def test_own_folder_in_python(picture_folder, tmp_path):
    words = ["train.iterations=2", "train.batch_size=4", "student.depth=1", "train.threads=1", "loader.workers=0"]
    done = example("own_folder").main(str(picture_folder), str(tmp_path / "run"), *words)
    assert done.steps == 2
    assert (tmp_path / "run" / "pca.png").stat().st_size > 0


def test_the_official_entry_points_of_torch_hub(tmp_path):
    """Names, shapes and numbers as `torch.hub.load` of the official repository gives them."""
    backbone = torch.hub.load(str(EXAMPLES.parent), "dinov2_vits14_reg", source="local", pretrained=False, depth=1)
    assert (backbone.num_register_tokens, backbone.pos_embed.shape[1]) == (4, 1 + 37**2)
    file = tmp_path / "mine.pth"
    torch.save(backbone.state_dict(), file)
    again = torch.hub.load(str(EXAMPLES.parent), "dinov2_vits14_reg", source="local", weights=str(file))
    x = torch.randn(1, 3, 28, 28)
    torch.testing.assert_close(again(x), backbone.eval()(x))
    head = torch.hub.load(str(EXAMPLES.parent), "dinov2_vits14_lc", source="local", pretrained=False, depth=1, layers=1)
    assert head(x).shape == (1, 1000)


def run_notebook(name, **settings):
    """Run the cells of a notebook, the settings of its first one replaced; no output may be stored in it."""
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    found: dict = {}
    exec("".join(code[0]["source"]), found)
    assert set(settings) == found.keys() - {"__builtins__"}
    found |= settings
    for cell in code[1:]:
        exec("".join(cell["source"]), found)
    return found


def test_the_notebook_that_looks_at_features(weights, picture_folder):
    found = run_notebook("look_at_features", MODEL=weights, PHOTOS=str(picture_folder))
    assert found["cls"].shape == (4, 64)
    assert found["patches"].shape == (4, 16, 64)
    assert len(np.unique(np.asarray(found["picture"]).reshape(-1, 3), axis=0)) > 50


def test_the_notebook_that_searches(weights, picture_folder, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(picture_folder / "class0", photos)
    shutil.copy(photos / "00.png", photos / "zz.png")
    settings = {"MODEL": weights, "PHOTOS": str(photos), "FEATURES": str(tmp_path / "features")}
    found = run_notebook("search_photos", **settings)
    assert found["hits"][0].path.endswith("zz.png")
    assert found["page"].count("<img") == 6
    assert any(len(group.images) > 1 for group in found["groups"])
