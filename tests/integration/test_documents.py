# SPDX-License-Identifier: Apache-2.0
"""The README's blocks and the tutorials' run as they are written, cut down by settings to a network of one block.

What a block speaks of (`path/to/images`, `facebook/dinov2-base`) lies in the folder where it runs. A command that needs
several processes, a cluster or a program of others is read to its last setting instead. A block behind
`<!-- not run: REASON -->` is only read.
"""

import re
import shlex
import tarfile
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from opendino import hf
from opendino.cli import VERBS, _launch
from opendino.cli._words import find_recipe, split
from opendino.cli.main import main
from opendino.config import load
from opendino.curate.pipeline import CurateConfig

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\s*)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CUT = ["train.iterations=2", "train.batch_size=4", "train.threads=1", "train.precision=fp32", "loader.workers=0"]
CUT += ["log.trackers=[]", "knn.every=0", "dino.hidden_dim=32", "crops.local_number=1", "checkpoint.every=1"]
SMALL = ["dino.prototypes=32", "student.depth=1", "student.embed_dim=64", "student.num_heads=1"]
CUTS = {
    "pretrain": [*CUT, *SMALL],
    "distill": [*CUT, *SMALL[1:]],
    "adapt": [*CUT, "adapt.head_steps=1", "drift.sample=8"],
    "demo": [*CUT, *SMALL, "images=60"],
    "linear": ["linear.iterations=4", "linear.batch_size=8"],
    "balance.size=100000": ["balance.size=6"],
}
LACKING = {verb for verb, module in (("serve", "uvicorn"), ("onnx", "onnxruntime")) if not find_spec(module)}
"""Words of commands that are read and not run where an extra is not installed."""
OTHERS = ("pip", "git", "tensorboard", "make")
"""Programs of others: their words are checked, they are not run."""


@dataclass(frozen=True)
class Block:
    page: str
    number: int
    reason: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    found = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [Block(page, number, *parts) for number, parts in enumerate(found)]


def commands(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def cut(words: list[str]) -> list[str]:
    """The command with the settings of `CUTS`, which win."""
    less = next((CUTS[word] for word in words if word in CUTS), [])
    keys = {word.partition("=")[0] for word in less}
    if words[0] == "distill" and "student=vits14" not in words:
        less = [word for word in less if not word.startswith("student.")]
        keys = {key for key in keys if not key.startswith("student.")}
    return [*(word for word in words if "=" not in word or word.partition("=")[0] not in keys), *less]


def run(words: list[str]) -> None:
    """One command of a block."""
    if words[0] == "opendino" and not LACKING & set(words) and not any(word.startswith("launch=") for word in words):
        assert words[1] in VERBS, words
        jaxtyping.config.update("jaxtyping_disable", words[1] == "export")  # tracers do not know sizes
        try:
            assert main(cut(words[1:])) == 0, words
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)
    else:
        read(words)


def read(words: list[str]) -> None:
    """A command that is not run: every setting has to be one, every recipe, extra and target has to be there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if words[0] == "pip":
        extras = re.findall(r"\[([\w,]+)\]", " ".join(words))
        assert {name for part in extras for name in part.split(",")} <= set(project["optional-dependencies"])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif words[0] == "torchrun":
        read(["opendino", *words[words.index("-m") + 2 :]])
    elif words[0] == "opendino":
        assert words[1] in VERBS, words
        _, rest = _launch.taken_off(words[2:])
        check_settings(words[1], rest)
    else:
        assert words[0] in OTHERS, words


def check_settings(verb: str, words: list[str]) -> None:
    from opendino.train.config import PretrainConfig

    if verb == "pretrain":
        names, settings = split(words)
        load(PretrainConfig, find_recipe(names[0]) if names else None, settings)
    elif verb == "curate":
        load(CurateConfig, None, split(words)[1])


def do(block: Block) -> None:
    if block.language == "python" and not block.reason:
        exec(compile(block.text, f"{block.page}, block {block.number}", "exec"), {})
    elif block.language == "sh":
        for words in commands(block.text):
            (read if block.reason else run)(words)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages speak of."""
    root, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    for part in ("path/to/images", "path/to/train", "path/to/val", "photos", "cifar10/train"):
        for number in range(12):
            folder = root / part / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 128, (150, 200, 3)) + 90 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{part[-3:]}{number:02d}.png")
    for name in ("photo1.jpg", "photo2.jpg"):
        Image.fromarray(rng.integers(0, 256, (56, 70, 3)).astype(np.uint8)).save(root / name)
    (root / "crawl").mkdir()
    with tarfile.open(root / "crawl" / "0.tar", "w") as tar:
        tar.add(root / "photo1.jpg", "photo1.jpg")
    tiny = hf.Dinov2Config(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=56, patch_size=14)
    hf.Dinov2Model(tiny).save_pretrained(root / "facebook" / "dinov2-base")
    hf.Dinov2ImageProcessor(size=64, crop_size=56).save_pretrained(root / "facebook" / "dinov2-base")
    return root


@pytest.fixture
def here(place, monkeypatch):
    """In that folder, with nothing that would wait for a user or for the network."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "serve" not in LACKING:
        monkeypatch.setattr("uvicorn.run", lambda app, **_: app)
        monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets=None: None)
    torch.manual_seed(0)
    return place


TUTORIALS = ["README", "own-folder", "continue", "evaluate", "distil", "curate", "export", "one-gpu", "cluster"]


@pytest.mark.parametrize("block", blocks("README.md"), ids=lambda block: f"{block.number}-{block.language}")
def test_readme(block, here):
    do(block)


@pytest.mark.parametrize("page", TUTORIALS)
def test_tutorials(page, here, monkeypatch):
    (here / "tutorials").mkdir(exist_ok=True)
    if not (here / "tutorials" / "path").exists():
        (here / "tutorials" / "path").symlink_to(here / "path")
    monkeypatch.chdir(here / "tutorials")
    found = blocks(f"docs/tutorials/{page}.md")
    assert found
    for block in found:
        do(block)


def test_every_tutorial_is_tried():
    assert sorted(TUTORIALS) == sorted(path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md"))


def test_the_arabic_page_says_the_same():
    """Its blocks are lines of the English page; its figures are there too."""
    english = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in blocks("README.ar.md"):
        for line in block.text.splitlines():
            assert line in english, line
    arabic = (ROOT / "README.ar.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\d+\.\d+", arabic)) <= set(re.findall(r"\d+\.\d+", english))
