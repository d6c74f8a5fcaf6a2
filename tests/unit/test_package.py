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
    extras = project["project"]["optional-dependencies"]
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *extras["dev"],
        *extras["docs"],
    ]
    names = {re.match(r"[\w-]+", one)[0].lower().replace("_", "-") for one in wanted}
    assert names <= pins
    assert not [one for one in wanted if "==" in one]
    assert {"PIP_CONSTRAINT=constraints.txt", "PIP_BUILD_CONSTRAINT=constraints.txt"} <= {
        *(ROOT / "Makefile").read_text().split()
    }


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert {opendino.__version__, project["version"], cited[1]} == {opendino.__version__}
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("[", "").replace("]", "")


def test_types_are_promised_and_shipped_data_have_their_licences():
    package = ROOT / "src" / "opendino"
    assert (package / "py.typed").exists()
    for folder in (path.parent for path in (package / "assets").rglob("*.parquet")):
        assert (folder / "LICENSE").exists(), folder
        assert (folder / "README.md").exists(), folder


def test_python_and_torch_that_are_promised_are_those_of_the_page():
    """docs/reference/versions.md says what was tried; what the project asks for stands there too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "reference" / "versions.md").read_text(encoding="utf-8")
    minor = [one.rpartition(" ")[2] for one in project["classifiers"] if re.search(r"Python :: 3\.\d+$", one)]
    assert minor[0] == project["requires-python"].removeprefix(">=")
    for version in minor:
        assert f"| {version} |" in page, version
    assert next(one for one in project["dependencies"] if one.startswith("torch")).removeprefix("torch>=") in page
