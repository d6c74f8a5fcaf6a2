# SPDX-License-Identifier: Apache-2.0
"""What users get wrong: one sentence that says where, what came, what was wanted and what to do; nothing is left."""

import os
import subprocess
import sys

import pytest

from opendino.cli.main import main


def refused(capsys, words, folder, *parts):
    """Run the command; it must refuse with one line that holds `parts`, and leave no folder behind."""
    existed = folder.exists()
    before = sorted(folder.rglob("*")) if existed else []
    assert main(["pretrain", *words]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err + captured.out
    for part in parts:
        assert part in lines[0]
    assert folder.exists() == existed
    assert (sorted(folder.rglob("*")) if existed else []) == before
    return lines[0]


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def test_missing_folder(capsys, tiny_words, run, tmp_path):
    refused(
        capsys, [*tiny_words, f"data={tmp_path / 'nowhere'}"], run, str(tmp_path / "nowhere"), "no such file or folder"
    )


def test_empty_folder(capsys, tiny_words, run, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(capsys, [*tiny_words, f"data={tmp_path / 'empty'}"], run, "empty", "put images into it")


def test_no_image_in_the_folder(capsys, tiny_words, run, tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "a.docx").write_text("words")
    refused(capsys, [*tiny_words, f"data={tmp_path / 'papers'}"], run, "papers", "1 .docx")


def test_no_readable_image(capsys, tiny_words, run, tmp_path):
    (tmp_path / "broken").mkdir()
    for number in range(3):
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    refused(capsys, [*tiny_words, f"data={tmp_path / 'broken'}"], run, "broken", "can be read", "check the files")


def test_too_many_bad_images(capsys, tiny_words, run, tmp_path, picture_folder):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    good = next(picture_folder.rglob("*.png")).read_bytes()
    for number in range(20):
        (mixed / f"{number:02d}.png").write_bytes(good if number % 2 else good[:60])
    words = [*tiny_words, f"data={mixed}", "loader.min_bad_count=0"]
    refused(capsys, words, run, "mixed", "loader.max_bad_rate", "cannot be decoded")


def test_unknown_key(capsys, tiny_words, run):
    refused(capsys, [*tiny_words, "optim.base_lrr=1"], run, "optim.base_lrr", "did you mean optim.base_lr?")


def test_wrong_type(capsys, tiny_words, run):
    refused(capsys, [*tiny_words, "train.iterations=many"], run, "train.iterations = 'many'", "integer")


def test_all_mistakes_at_once(capsys, tiny_words, run):
    assert main(["pretrain", *tiny_words, "sed=1", "crops.global_sizes=3", "train.batch_size=big"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "sed" in line]
    assert [line for line in lines if "did you mean crops.global_size?" in line]
    assert [line for line in lines if "train.batch_size = 'big'" in line]
    assert not run.exists()


@pytest.mark.parametrize(("size", "fits"), [(10, "8 or 12"), (3, "4")])
def test_local_crop_is_no_multiple_of_the_patch(capsys, tiny_words, run, size, fits):
    line = refused(capsys, [*tiny_words, f"crops.local_size={size}"], run, f"crops.local_size = {size}", "patch size 4")
    assert line.endswith(f"use {fits}")


def test_batch_of_one(capsys, tiny_words, run):
    refused(capsys, [*tiny_words, "train.batch_size=1"], run, "train.batch_size = 1", "use 2 or more")


def test_warm_up_longer_than_the_run(capsys, tiny_words, run):
    refused(capsys, [*tiny_words, "optim.warmup=100"], run, "optim.warmup = 100", "run of 6", "0.1")


def test_heads_that_do_not_divide_the_width(capsys, tiny_words, run):
    refused(capsys, [*tiny_words, "student.num_heads=5"], run, "32", "5")


def test_no_data_and_no_folder(capsys, tiny_words, run):
    refused(
        capsys, [word for word in tiny_words if not word.startswith("data=")], run, "data is missing", "data=FOLDER"
    )
    words = [word for word in tiny_words if not word.startswith("output_dir=")]
    refused(capsys, words, run, "output_dir is missing")


def test_a_folder_of_something_else(capsys, tiny_words, run):
    run.mkdir()
    (run / "thesis.tex").write_text("dear")
    refused(capsys, tiny_words, run, "thesis.tex", "name a new or an empty folder")


def test_an_empty_folder_is_as_good_as_none(tiny_words, run):
    run.mkdir()
    assert main(["pretrain", *tiny_words, "train.iterations=1"]) == 0


def test_output_folder_is_a_file(capsys, tiny_words, run):
    run.write_text("a file")
    refused(capsys, tiny_words, run, "is a file")


def test_folder_of_another_run(capsys, tiny_words, run, tmp_path):
    assert main(["pretrain", *tiny_words]) == 0
    capsys.readouterr()
    line = refused(capsys, [*tiny_words, "seed=3", "crops.local_number=1"], run, "seed was 0 and is now 3")
    assert "crops.local_number was 2 and is now 1" in line
    assert "name another output_dir" in line


def test_images_that_came_since(capsys, tiny_words, run, tmp_path, picture_folder):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(picture_folder, copy)
    words = [*tiny_words, f"data={copy}"]
    assert main(["pretrain", *words]) == 0
    shutil.copy(copy / "class0" / "00.png", copy / "class0" / "more.png")
    capsys.readouterr()
    refused(capsys, words, run, "images was 40 and is now 41")


def test_checkpoint_of_another_shape(capsys, tiny_words, run):
    from safetensors.torch import load_file, save_file

    assert main(["pretrain", *tiny_words]) == 0
    import hashlib
    import json

    folder = run / "checkpoints" / "step_00000006"
    tensors = load_file(folder / "student.safetensors")
    tensors["backbone.cls_token"] = tensors["backbone.cls_token"][..., :8].contiguous()
    save_file(tensors, folder / "student.safetensors")
    content = (folder / "student.safetensors").read_bytes()
    state = json.loads((folder / "state.json").read_text())
    state["parts"]["student"][0] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "state.json").write_text(json.dumps(state))
    capsys.readouterr()
    refused(capsys, tiny_words, run, "student.safetensors", "1x1x8 and not 1x1x32", "another output_dir")


def test_unknown_recipe(capsys, tiny_words, run):
    refused(
        capsys, ["vit_tiny_cifar11", *tiny_words], run, "vit_tiny_cifar11", "did you mean pretrain/vit_tiny_cifar10?"
    )


def test_debug_shows_the_traceback(tiny_words, run):
    from opendino.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["pretrain", "--debug", *tiny_words, "train.batch_size=1"])


NO_ROOM = """
import resource, sys
from opendino.cli.main import main
import opendino.train.upkeep as upkeep
save = upkeep.Upkeep.save
def save_with_little_room(self, run):
    if run.step == 4:  # a limit on the size of files fails a write in the middle, as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save(self, run)
upkeep.Upkeep.save = save_with_little_room
sys.exit(main(sys.argv[1:]))
"""


def test_no_space_left(tiny_words, run):
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM, "pretrain", *tiny_words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "the checkpoint of step 4 could not be written" in lines[0]
    assert "continues from step 2" in lines[0]
    assert "Traceback" not in done.stderr
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000002"]
    assert main(["pretrain", *tiny_words]) == 0
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000004", "step_00000006"]


def test_a_loss_that_is_not_finite(capsys, tiny_words, run, monkeypatch):
    """The step stops, the images are written down, and the checkpoint before it is whole."""
    from opendino.train import loop

    step = loop.train_step

    def poisoned(run, batch):
        if run.step == 4:
            batch.global_crops[0, 0, 0, 0] = float("nan")
        return step(run, batch)

    monkeypatch.setattr(loop, "train_step", poisoned)
    assert main(["pretrain", *tiny_words, "train.max_not_finite=0"]) == 2
    error = capsys.readouterr().err
    assert "error: step 4: not finite: loss nan" in error
    assert "last checkpoint is good" in error
    assert "class" in (run / "not_finite_step_4.json").read_text()
    monkeypatch.undo()
    assert main(["pretrain", *tiny_words]) == 0
