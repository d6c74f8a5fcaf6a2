# SPDX-License-Identifier: Apache-2.0
"""Every shipped recipe of a protocol loads into that protocol's settings; every protocol's module is what it says."""

import dataclasses
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from opendino import config
from opendino.cli._words import find_recipe, split
from opendino.eval import PROTOCOLS

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs" / "eval").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load(path):
    run = next(line for line in path.read_text().splitlines() if line.startswith("# run:"))
    protocol = run.split("opendino eval ")[1].split()[0]
    module, name, _ = PROTOCOLS[protocol]
    assert config.load(getattr(import_module(module), name), path)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_protocols_have_settings_a_run_and_words_in_the_help(protocol):
    from opendino.cli.eval import USAGE

    module, name, says = PROTOCOLS[protocol]
    assert says
    loaded = import_module(module)
    assert callable(loaded.run)
    settings = getattr(loaded, name)
    assert dataclasses.is_dataclass(settings)
    assert config.load(settings) == settings()
    assert f"opendino eval {protocol}" in USAGE
    assert f"\n{protocol} " in USAGE


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_what_a_run_recorded_is_taken_where_it_is_known(protocol, tmp_path):
    from opendino.cli.eval import defaults_of

    (tmp_path / "config.yaml").write_text("images: {value_range: [0, 4095], orient: false}\n")
    module, name, _ = PROTOCOLS[protocol]
    settings = getattr(import_module(module), name)
    known = config.fields_of(settings)
    defaults = defaults_of(protocol, str(tmp_path), str(tmp_path / "out"), known)
    assert defaults["features.cache"] == str(tmp_path / "out" / "features")
    loaded = config.leaves(config.load(settings, None, (), defaults))
    assert all(loaded[key] == value for key, value in defaults.items())
    if protocol in ("knn", "linear", "logreg", "segment", "finetune", "robust", "health"):
        prefix = "" if protocol == "health" else "data."
        assert loaded[f"{prefix}value_range"] == [0, 4095]


def documented():
    """Every command `opendino eval ...` of the documents, as words; lines that a backslash continues are one."""
    found = []
    for page in [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:2] == ["opendino", "eval"] and words[2] in PROTOCOLS:
                    found.append((page.stem, words[2:]))
    return found


def test_commands_of_the_documents_name_settings_that_exist():
    found = documented()
    assert {words[0] for page, words in found if page == "results"} >= {
        "knn",
        "linear",
        "segment",
        "depth",
        "retrieval",
    }
    for page, (protocol, *words) in found:
        names, given = split(words, most=2)
        module, name, _ = PROTOCOLS[protocol]
        given = [word for word in given if not word.startswith("out=") and "..." not in word]
        assert names, page
        assert config.load(getattr(import_module(module), name), find_recipe(names[1]) if names[1:] else None, given)
