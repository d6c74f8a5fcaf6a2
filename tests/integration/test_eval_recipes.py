# SPDX-License-Identifier: Apache-2.0
"""Every shipped recipe of a protocol loads into that protocol's settings; every protocol's module is what it says."""

import dataclasses
from importlib import import_module
from pathlib import Path

import pytest

from opendino import config
from opendino.eval import PROTOCOLS

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "eval").glob("*.yaml"))


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
