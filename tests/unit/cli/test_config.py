# SPDX-License-Identifier: Apache-2.0
import pytest
import yaml

from opendino.cli.main import main


def test_ls_has_a_line_for_each_recipe(capsys):
    assert main(["config", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("pretrain/vitl16_in1k_short") and "ViT-L/16 on ImageNet-1k" in line for line in lines)


def test_show_is_every_setting(capsys):
    assert main(["config", "show", "vitl14_in22k_long", "train.batch_size=64"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["train"]["batch_size"] == 64
    assert shown["ibot"]["separate_head"] is True
    assert shown["crops"]["flip"] == 0.5


def test_show_without_a_recipe_is_the_defaults(capsys):
    assert main(["config", "show"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["iterations"] == 125_000


def test_check_names_the_fault_of_each_file(tmp_path, capsys):
    good, bad, worse = (tmp_path / f"{name}.yaml" for name in ("good", "bad", "worse"))
    good.write_text("seed: 1\n")
    bad.write_text("crops: {local_size: 97}\n")
    worse.write_text("optim: {base_lrr: 1}\n")
    assert main(["config", "check", str(good)]) == 0
    assert "good; student backbone of 2" in capsys.readouterr().out
    assert main(["config", "check", str(good), str(bad), str(worse)]) == 2
    error = capsys.readouterr().err
    assert f"{bad}: crops.local_size = 97 is not a multiple of the patch size 14; use 84 or 98" in error.replace(
        "\n", " "
    )
    assert f"{worse}: optim.base_lrr" in error


def test_recipes_of_curation(capsys):
    assert main(["config", "show", "curate/balance_2levels", "cluster.steps=3"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["cluster"]["steps"] == 3
    assert main(["config", "check", "curate/lvd142m"]) == 0
    assert "curate/lvd142m: good\n" in capsys.readouterr().out


def test_diff(capsys, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("seed: 3\noptim: {warmup: 7}\n")
    other = tmp_path / "other.yaml"
    other.write_text("seed: 3\n")
    assert main(["config", "diff", str(recipe), str(other)]) == 0
    assert capsys.readouterr().out == "optim.warmup: 7 | 0.1\n"


def test_a_run_folder_is_as_good_as_a_recipe(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 9\n")
    assert main(["config", "show", str(tmp_path)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 9


@pytest.mark.parametrize("words", [[], ["list"], ["diff", "vit_tiny_cifar10"], ["check"], ["ls", "x"]])
def test_what_it_does_not_take(words, capsys):
    assert main(["config", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_recipes_of_other_trainings_are_read_as_theirs(capsys):
    assert main(["config", "show", "distill/demo_student"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["distill"]["targets"] == "features"
    assert main(["config", "check", "distill/demo_student"]) == 0


def test_an_official_configuration_becomes_a_recipe(tmp_path, capsys):
    official, out = tmp_path / "official.yaml", tmp_path / "ours.yaml"
    official.write_text(
        "student: {arch: vit_small, patch_size: 14, block_chunks: 4}\ntrain: {batch_size_per_gpu: 16}\n"
    )
    assert main(["config", "import", str(official), "gpus=8", f"out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "passed over: student.block_chunks: parameters are named without chunks" in printed
    assert yaml.safe_load(out.read_text())["train"]["batch_size"] == 128
    assert main(["config", "check", str(out), "crops.local_size=98"]) == 0
    capsys.readouterr()
    assert main(["config", "import", str(official), "gpus=8"]) == 0
    assert capsys.readouterr().out == out.read_text()
    assert main(["config", "import", str(official)]) == 2
    assert "give an official training YAML, and gpus=N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "official"),
    [
        ("MODEL: {WEIGHTS: ''}\ncompute_precision: {grad_scaler: true}\ncrops: {global_crops_size: 224}\n", True),
        ("student: {arch: vit_small}\ntrain: {batch_size_per_gpu: 16}\noptim: {base_lr: 0.004}\n", True),
        ("optim: {epochs: 5, base_lrr: 1}\n", False),  # a recipe of ours with a slip
    ],
)
@pytest.mark.parametrize("verb", ["check", "show"])
def test_an_official_configuration_is_known(tmp_path, capsys, text, official, verb):
    path = tmp_path / "official.yaml"
    path.write_text(text)
    assert main(["config", verb, str(path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (f"opendino config import {path} gpus=N" in said) == official
    assert ("no such setting" in said) != official
