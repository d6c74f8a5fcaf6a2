# SPDX-License-Identifier: Apache-2.0
"""The package from outside: its public names, and what importing it costs."""

import subprocess
import sys

import pytest

import opendino


def test_public_names_resolve():
    assert {name for name in opendino.__all__ if getattr(opendino, name) is not None} == {
        "__version__",
        "create",
        "load",
    }


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        opendino.nothing  # noqa: B018


def test_import_is_light():
    code = (
        "import sys, opendino; print([m for m in ('torch', 'numpy', 'transformers', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
