# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from opendino.cli import _words
from opendino.errors import ConfigError


def test_names_and_settings_in_any_order():
    assert _words.split(["a=1", "x.yaml", "b=c=d"]) == (["x.yaml"], ["a=1", "b=c=d"])


@pytest.mark.parametrize(
    ("words", "most", "message"),
    [
        (["x", "y"], 1, "'y': at most 1"),
        (["x"], 0, "'x': none"),
        (["--fast"], 3, "--fast: no such option; settings are written key=value, without dashes; see --help"),
        (["a", "--out=x=y"], 3, r"--out=x=y: no such option; .*, without dashes \(out=x=y\); see --help"),
    ],
)
def test_words_that_do_not_belong(words, most, message):
    with pytest.raises(ConfigError, match=message):
        _words.split(words, most)


def test_shipped_recipes_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = _words.recipes()
    path = shipped["pretrain/vit_tiny_cifar10"]
    assert path.is_file()
    for name in ("vit_tiny_cifar10", "pretrain/vit_tiny_cifar10", "configs/pretrain/vit_tiny_cifar10.yaml", str(path)):
        assert _words.find_recipe(name) == path


def test_a_file_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit_tiny_cifar10").write_text("seed: 1\n")
    assert _words.find_recipe("vit_tiny_cifar10") == Path("vit_tiny_cifar10")


@pytest.mark.parametrize(
    ("name", "hint"), [("vit_tiny_cifar", "did you mean pretrain/vit_tiny_cifar10?"), ("qqq", "opendino config ls")]
)
def test_unknown_recipes(name, hint):
    with pytest.raises(ConfigError, match=hint.replace("?", r"\?")):
        _words.find_recipe(name)


@pytest.mark.parametrize("what", ["folder", "table.parquet"])
def test_images_where_a_recipe_was_wanted(what, tmp_path):
    place = tmp_path / what
    place.write_bytes(b"PAR1\0\0") if "." in what else place.mkdir()
    with pytest.raises(ConfigError, match=f"{what}: is no recipe .* such as data={place}, see --help"):
        _words.find_recipe(str(place))


def test_an_installation_without_recipes(monkeypatch):
    monkeypatch.setattr(_words, "recipe_home", lambda: None)
    assert _words.recipes() == {}


def test_options_are_settings_too():
    assert _words.as_settings(["a", "--out", "x=y", "--to=hf", "b=1"], "out", "to") == ["a", "out=x=y", "to=hf", "b=1"]
    assert _words.as_settings(["--other", "x"], "out") == ["--other", "x"]
    with pytest.raises(ConfigError, match="--out: what comes behind it is missing"):
        _words.as_settings(["--out"], "out")
