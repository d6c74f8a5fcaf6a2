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
