# SPDX-License-Identifier: Apache-2.0
"""What users get wrong when they measure: one sentence by the command that says where, what came, what was wanted."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from opendino.checkpoint.weights import save_weights
from opendino.cli.main import main
from opendino.eval.adapters import TokenAdapter
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer

FAST = ["features.device=cpu", "features.progress=false"]
CLASSIFIERS = {
    "knn": ["knn.k=[1]"],
    "linear": ["linear.augment=false", "linear.iterations=1", "linear.every=0"],
    "logreg": ["logreg.values=1", "logreg.exponents=[0,0]"],
    "finetune": ["finetune.epochs=1", "finetune.batch_size=2"],
    "robust": ["robust.kinds=[fog]", "linear.iterations=1", "linear.every=0"],
}
MASKED = ["segment.crop=16", "segment.stride=16", "segment.short=0", "segment.iterations=1", "segment.batch_size=1"]


def picture(path, seed=0, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(path)


def mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    save_weights(VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1), home / "w")
    for part, classes in (("train", "ab"), ("val", "ab"), ("more", "abc"), ("one", "a")):
        for name in classes:
            for i in range(2):
                picture(home / part / name / f"{i}.png", seed=ord(name) + 100 * i + len(part))
    (home / "empty").mkdir()
    (home / "none" / "a").mkdir(parents=True)
    (home / "none" / "b").mkdir()
    halves = np.repeat([[0], [1]], 8, axis=0) * np.ones((1, 16))
    for part in ("good", "small", "far", "single"):
        picture(home / part / "images" / "0.png")
    mask(home / "good" / "masks" / "0.png", halves)
    mask(home / "small" / "masks" / "0.png", halves[4:12])
    mask(home / "far" / "masks" / "0.png", 7 * halves)
    mask(home / "single" / "masks" / "0.png", 0 * halves)
    picture(home / "lost" / "images" / "0.png")
    (home / "lost" / "masks").mkdir()
    (home / "bare" / "images").mkdir(parents=True)
    (home / "bare" / "masks").mkdir()
    return home


def refused(capsys, words, *parts):
    """One line that says all of `parts`, and nothing measured."""
    assert main(["eval", *map(str, words)]) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said.err
    assert "Traceback" not in said.err + said.out
    assert not said.out
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("protocol", list(CLASSIFIERS))
@pytest.mark.parametrize(
    ("train", "val", "says"),
    [
        ("train", "more", ["class 'c' (1 such) is not among the 2 classes"]),
        ("train", "empty", ["empty"]),
        ("train", "none", ["none"]),
        ("train", "nowhere", ["nowhere: there is no such file or folder"]),
        ("one", "val", ["one: has no labels of two or more classes"]),
        ("train", "one/a", ["has no labels of two or more classes"]),
        ("train", "train", ["are the same"]),
    ],
)
def test_parts_that_do_not_fit(home, capsys, tmp_path, protocol, train, val, says):
    out = [f"out={tmp_path / 'out'}"] if protocol == "finetune" else []
    words = [protocol, home / "w", f"data.train={home / train}", f"data.val={home / val}"]
    refused(capsys, [*words, *FAST, *CLASSIFIERS[protocol], *out], *says)
    assert not list((tmp_path).glob("out/*.json"))


def test_labels_out_of_range(home, capsys, tmp_path):
    rows = [f"{home / part / name / '0.png'},{label}" for part, name, label in (("train", "a", 0), ("train", "b", -3))]
    (tmp_path / "negative.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "same.csv").write_text("\n".join(["path,label", *(row.replace("train", "val") for row in rows)]))
    (tmp_path / "other.csv").write_text("\n".join(["path,label", *rows]).replace(",0", ",1").replace(",-3", ",9"))
    knn = ["knn", home / "w", *FAST, "knn.k=[1]"]
    words = [*knn, f"data.train={tmp_path / 'negative.csv'}", f"data.val={tmp_path / 'same.csv'}"]
    refused(capsys, words, "negative.csv", "-3")
    words = [*knn, f"data.train={home / 'train'}", f"data.val={tmp_path / 'other.csv'}"]
    refused(capsys, words, "other.csv: class '1' (2 such) is not among the 2 classes")
    (tmp_path / "header.csv").write_text("path,label\n")
    refused(capsys, [*knn, f"data.train={home / 'train'}", f"data.val={tmp_path / 'header.csv'}"], "header.csv")


def test_files_of_further_test_sets_that_do_not_fit(home, capsys, tmp_path):
    words = ["linear", home / "w", f"data.train={home / 'train'}", f"data.val={home / 'val'}"]
    words += [*FAST, *CLASSIFIERS["linear"]]
    for numbers, says in (([0, 5], "names class 5"), ([0, -1], "names class -1"), ([0], "maps 1 classes")):
        np.save(tmp_path / "map.npy", np.array(numbers))
        tests = [f"tests.sources=[{home / 'more'}]", f"tests.class_mappings=[{tmp_path / 'map.npy'}]"]
        refused(capsys, [*words, *tests], "map.npy", says)
    (tmp_path / "real.json").write_text(json.dumps([[0]]))
    refused(capsys, [*words, f"tests.real={tmp_path / 'real.json'}"], "real.json: has 1 lists of answers for 4 images")
    (tmp_path / "real.json").write_text("{}")
    refused(capsys, [*words, f"tests.real={tmp_path / 'real.json'}"], "real.json")


@pytest.mark.parametrize("head", ["linear", "knn"])
@pytest.mark.parametrize(
    ("train", "val", "more", "says"),
    [
        ("good", "small", [], ["0.png: the image has 16x16 pixels and its mask 16x8"]),
        ("small", "good", [], ["0.png: the image has 16x16 pixels and its mask 16x8"]),
        ("good", "far", [], ["its mask has class 7, and there are 2", "data.classes"]),
        ("far", "good", ["data.classes=3"], ["its mask has class 7, and there are 3"]),
        ("single", "good", [], ["single: its masks have one class"]),
        ("good", "lost", [], ["0.png: has no map"]),
        ("good", "bare", [], ["bare: holds no image with a map"]),
        ("good", "empty", [], ["empty: a folder 'images' and a folder 'masks'"]),
        ("good", "good", ["data.ignore=[0,1]"], ["no class that counts"]),
    ],
)
def test_masks_that_do_not_fit(home, capsys, head, train, val, more, says):
    words = ["segment", home / "w", f"data.train={home / train}", f"data.val={home / val}", f"segment.head={head}"]
    refused(capsys, [*words, *FAST, *MASKED, *more], *says)


def test_depths_that_do_not_fit(home, capsys, tmp_path):
    for part, shape in (("deep", (16, 16)), ("low", (8, 16))):
        picture(tmp_path / part / "images" / "0.png")
        (tmp_path / part / "depth").mkdir()
        np.save(tmp_path / part / "depth" / "0.npy", np.full(shape, 2.0, np.float32))
    words = ["depth", home / "w", *FAST, "depth.head=lin1", "depth.iterations=1", "depth.batch_size=1"]
    parts = [f"data.train={tmp_path / 'deep'}", f"data.val={tmp_path / 'low'}"]
    refused(capsys, [*words, *parts], "data.max_depth")
    refused(capsys, [*words, *parts, "data.max_depth=10"], "0.png", "they have to be of one size")
    refused(capsys, [*words, *parts, "data.max_depth=1"], "no depth above 0 and up to 1")


class Pooling(nn.Module):
    """A network that gives one vector an image, and no token of any patch."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def forward(self, x):
        x = x.mean(dim=(2, 3))
        for block in self.blocks:
            x = block(x)
        return x


def test_a_model_without_patch_tokens_is_refused(home, capsys, monkeypatch):
    spec = InputSpec((16, 16), 3, (0.5,) * 3, (0.5,) * 3)

    def open_pooling(_name):
        tower = Pooling()
        return TokenAdapter(tower, tower, 8, spec)

    monkeypatch.setattr("opendino.eval.adapters.open_backbone", open_pooling)
    words = ["segment", "timm:pooling", f"data.train={home / 'good'}", f"data.val={home / 'good'}"]
    refused(capsys, [*words, *FAST, *MASKED], "Pooling: its last block gives (1, 3) where 4 patch tokens were wanted")


@pytest.mark.parametrize("protocol", ["knn", "logreg"])
def test_features_that_are_not_finite_are_refused_with_their_images(home, capsys, tmp_path, protocol):
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1)
    backbone.norm.weight.data.fill_(3e38)  # finite itself, and its products with what is above one are not
    save_weights(backbone, tmp_path / "huge")
    words = [protocol, tmp_path / "huge", f"data.train={home / 'train'}", f"data.val={home / 'val'}"]
    out = f"out={tmp_path / 'out'}"
    refused(
        capsys,
        [*words, *CLASSIFIERS[protocol], *FAST, out],
        "features of 4 of 4 images are not finite in fp32",
        "a/0.png",
    )
    assert not list(tmp_path.glob("out/*.json"))
