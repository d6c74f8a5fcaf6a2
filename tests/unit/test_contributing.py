# SPDX-License-Identifier: Apache-2.0
"""What CONTRIBUTING.md says of the house is so."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_floors_are_those_that_are_checked():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    floor = {name: number for number, line in enumerate(reversed(layers)) for name in re.findall(r"\w+", line)}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    house = text[text.index("From the ground up:") : text.index("One file is one idea.")]
    named = re.findall(r"`(\w+)`", house)
    assert sorted(named) == sorted(floor), "each room is named once"
    assert [floor[name] for name in named] == sorted(floor.values())


def test_rooms_and_files_that_are_named_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(
        r"`((?:losses|data|optim|eval|cli|methods|tests|src|configs|docs|benchmarks)/[\w/.]*)`", text
    ):
        if "x.py" in name or "x.md" in name or name.endswith("test_x.py"):
            continue
        assert any((ROOT / place / name).exists() for place in ("", "src/opendino")), name
