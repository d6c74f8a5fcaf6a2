# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from pathlib import Path

import pytest

from opendino.cli.adapt import _told_apart
from opendino.cli.main import main
from opendino.errors import ConfigError

QUICK = ["train.iterations=2", "train.threads=1", "train.device=cpu", "loader.workers=0", "drift.sample=8"]


def test_a_run_at_a_larger_size_and_again(tiny_run, tmp_path, capsys):
    words = ["adapt", str(tiny_run), "resolution=24", f"output_dir={tmp_path / 'out'}", *QUICK, "drift.limit=0"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "checkpoint of step 6, with its heads" in said.out
    assert "crops.global_size" in said.out
    assert "dino.prototypes" not in said.out, "what is inherited is too much to be shown"
    assert "cls_neighbours" in said.out
    assert "warning: cls: CKA with the start is" in said.err
    report = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert report["origin"]["kind"] == "checkpoint"
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step_00000002", ignore_errors=True)
    assert main(words) == 0
    assert "continuing in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "init is missing: give init=RUN"),
        (["{run}", "resolution=30"], "resolution = 30 is not a multiple of the patch size 4; use 28 or 32"),
        (["init={run}", "resolution=30"], "resolution = 30 is not a multiple of the patch size 4; use 28 or 32"),
        (["{run}", "student.preset=vitb14"], "leave student.* out: the shape is that of the weights"),
        (["{run}", "dino.prototypes=48"], "build new ones by adapt.start=weights"),
        (["{run}", "student.in_chans=1", "adapt.channels=keep"], "adapt.channels = keep cannot fit weights for 3"),
        (["nowhere/at-all"], "nowhere/at-all"),
        (["{run}", "{run}"], "are two starts, and one is taken"),
        (["{run}", "adapt.lora=2", "adapt.lora_layers=nothing"], "no linear layer's name ends on 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    tiny_run, picture_folder, tmp_path, capsys, monkeypatch, words, message
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "out"
    words = [word.format(run=tiny_run) for word in words]
    assert main(["adapt", *words, f"data={picture_folder}", f"output_dir={out}", *QUICK]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert not out.exists()


def test_recipes_and_starts_are_told_apart(tmp_path):
    assert _told_apart(["vit_tiny_cifar10", "runs/mine"])[1] == "runs/mine"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("seed: 1\n")
    assert _told_apart(["facebook/dinov2-base", str(recipe)]) == (Path(recipe), "facebook/dinov2-base")
    with pytest.raises(ConfigError, match=r"are two recipes"):
        _told_apart(["a.yaml", "b.yaml"])
