# SPDX-License-Identifier: Apache-2.0
"""The face from outside: its public names, what importing it costs, and transformers that is not there."""

import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_public_names_resolve():
    pytest.importorskip("transformers")
    from opendino import hf

    assert all(getattr(hf, name).__module__.startswith("opendino.hf.") for name in hf.__all__)
    assert dir(hf) == sorted(hf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Dinov3Model'"):
        hf.Dinov3Model  # noqa: B018


def test_import_is_light():
    code = "import sys, opendino.hf; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert run(code) == "[]"


def test_missing_transformers_is_said_in_words():
    code = """
import sys
sys.modules["transformers"] = None
try:
    from opendino.hf import AutoModel
except ImportError as error:
    print(type(error).__name__, error)
"""
    assert run(code) == (
        "MissingTransformersError opendino.hf.AutoModel needs the package transformers, which is not installed; "
        'run: pip install "opendino[hf]"'
    )
