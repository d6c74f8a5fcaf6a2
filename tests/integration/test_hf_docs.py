# SPDX-License-Identifier: Apache-2.0
"""Every block of Python, and every `opendino convert`, of two pages of the docs, run as it stands on tiny folders."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from opendino import hf
from opendino.checkpoint.weights import save_weights
from opendino.cli import convert
from opendino.models.presets import create

DOCS = Path(__file__).parents[2] / "docs" / "how-to"
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 56, "patch_size": 14}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the pages speak of, under other names."""
    hf.Dinov2Model(hf.Dinov2Config(**TINY)).save_pretrained(tmp_path / "base")
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    hf.Dinov2ForImageClassification(hf.Dinov2Config(**TINY, **labels)).save_pretrained(tmp_path / "classifier")
    for name in ("base", "classifier"):
        hf.Dinov2ImageProcessor(size=64, crop_size=56).save_pretrained(tmp_path / name)
    backbone = create("vits14_reg4", depth=1, embed_dim=64, num_heads=1)
    save_weights(backbone, tmp_path / "runs" / "mine" / "weights")
    torch.save({"teacher": {f"backbone.{k}": v for k, v in backbone.state_dict().items()}}, tmp_path / "teacher.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


STANDS_FOR = {
    '"facebook/dinov2-base-imagenet1k-1-layer"': '"classifier"',
    '"facebook/dinov2-base"': '"base"',
    '"dinov2_vits14_reg"': '"teacher.pth"',
    '"cuda"': '"cpu"',
}


@pytest.mark.parametrize("page", ["checkpoints.md", "hugging-face.md"])
def test_python_runs_as_it_stands(page, place):
    code = blocks(page, "python")
    assert len(code) == {"checkpoints.md": 1, "hugging-face.md": 6}[page]
    for number, block in enumerate(code):
        for name, ours in STANDS_FOR.items():
            block = block.replace(name, ours)
        assert "facebook/" not in block
        run = subprocess.run([sys.executable, "-W", "ignore", "-c", block], capture_output=True, text=True, cwd=place)
        assert run.returncode == 0, f"block {number + 1}:\n{block}\n{run.stderr[-2000:]}"


def test_conversions_run_as_they_stand(place, capsys):
    lines = [line for block in blocks("checkpoints.md", "sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("opendino convert")]
    assert len(commands) == 3
    names = {"teacher_checkpoint.pth": "teacher.pth", "facebook/dinov2-base": "base"}
    for command in commands:
        assert convert.main([names.get(word, word) for word in command[2:]]) == 0
        assert "largest difference 0.0e+00" in capsys.readouterr().out
    assert {path.name for path in (place / "out").iterdir()} == {"hf", "timm"}
