# SPDX-License-Identifier: Apache-2.0
"""The package from outside: its public names, and what importing it costs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import opendino

ROOT = Path(__file__).parents[2]


def test_public_names_resolve():
    assert {name for name in opendino.__all__ if getattr(opendino, name) is not None} == {
        "__version__",
        "create",
        "load",
        "optimize",
    }


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        opendino.nothing  # noqa: B018


def test_import_is_light():
    code = (
        "import sys, opendino; print([m for m in ('torch', 'numpy', 'transformers', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_whatever_is_installed_for_a_checkout_is_pinned():
    """What the package is built with too; `pip install .` itself stays free of pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    extras = project["project"]["optional-dependencies"]["dev"]
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"], *extras]
    names = {re.match(r"[\w-]+", one)[0].lower().replace("_", "-") for one in wanted}
    assert names <= pins
    assert not [one for one in wanted if "==" in one]
    assert {"PIP_CONSTRAINT=constraints.txt", "PIP_BUILD_CONSTRAINT=constraints.txt"} <= {
        *(ROOT / "Makefile").read_text().split()
    }
