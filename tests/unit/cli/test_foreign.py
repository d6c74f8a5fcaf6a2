# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from opendino.cli._foreign import command_of, refuse_foreign, refuse_other
from opendino.cli._words import recipes
from opendino.cli.main import main
from opendino.errors import ConfigError

OFFICIAL = "dino:\n  head_n_prototypes: 131072\ntrain:\n  batch_size_per_gpu: 32\nstudent:\n  arch: vit_large\n"
LIGHTLY = "out: out/run\ndata: pictures\nmodel: dinov2/vits14\nmethod: dinov2\nepochs: 100\nmethod_args: {}\n"
MODEL = {"architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": 384, "transformers_version": "4.57.0"}


@pytest.mark.parametrize("verb", ["pretrain", "distill", "adapt"])
def test_an_official_configuration_is_known_to_every_training(tmp_path, capsys, verb):
    path = tmp_path / "vitl16_short.yaml"
    path.write_text(OFFICIAL)
    assert main([verb, str(path), f"data={tmp_path}", f"output_dir={tmp_path / 'run'}"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"make one of it by opendino config import {path} gpus=N out=RECIPE.yaml" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", json.dumps(MODEL), "describes a model of transformers.*opendino adapt .* data=DIR"),
        ("train.yaml", LIGHTLY, "a configuration of lightly-train"),
        ("train.yaml", "- 1\n", "a recipe is a mapping of settings, this is a list"),
    ],
)
def test_other_configurations_are_told_what_to_do(tmp_path, capsys, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        refuse_foreign(path)
    for words in (["pretrain", str(path), f"data={tmp_path}"], ["config", "check", str(path)]):
        assert main(words) == 2
        assert message.split(".*")[0] in capsys.readouterr().err


def test_our_own_are_none(tmp_path):
    for path in recipes().values():
        refuse_foreign(path)
    (tmp_path / "typo.yaml").write_text("train:\n  batchsize: 3\nout: x\n")
    refuse_foreign(tmp_path / "typo.yaml")


@pytest.mark.parametrize(
    ("words", "of"),
    [
        (["pretrain", "curate/lvd142m", "data=x", "output_dir=NEW"], "curate"),
        (["pretrain", "cifar10_48", "data=x", "output_dir=NEW"], "adapt"),
        (["distill", "OWN", "data=x", "output_dir=NEW"], "curate"),
        (["adapt", "cifar10_student", "data=x", "output_dir=NEW"], "distill"),
        (["curate", "vit_tiny_cifar10", "out=NEW"], "pretrain"),
        (["eval", "knn", "model", "linear_quick", "out=NEW"], "eval linear"),
        (["embed", "OWN", "OWN", "model=m", "out=NEW"], "curate"),
    ],
)
def test_a_recipe_of_another_command_is_told_in_one_line(tmp_path, capsys, words, of):
    own, new = tmp_path / "mine.yaml", tmp_path / "new"
    own.write_text("queries: [a]\nretrieve: {cap: 3}\n")
    assert main([word.replace("OWN", str(own)).replace("NEW", str(new)) for word in words]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("error: ") == 1
    assert f"this is a recipe of `opendino {of}`" in said
    assert "did you mean" not in said
    assert not new.exists()


def test_every_shipped_recipe_is_of_the_command_that_its_folder_names():
    for name, path in recipes().items():
        folder = name.partition("/")[0]
        found = command_of(path)
        assert found is not None
        assert found.partition(" ")[0] == folder
        refuse_other(path, found)
