# SPDX-License-Identifier: Apache-2.0
"""The short form of `benchmarks/fuzz.py`: some inputs of each kind, drawn and made smaller by hypothesis."""

import importlib
import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opendino.errors import DataError, OpendinoError

HOME = Path(__file__).parents[2] / "benchmarks"
INPUTS = {"config": 25, "image": 60, "table": 25, "tar": 20, "weights": 20, "run": 20, "head": 15, "server": 20}
LONGEST = 20.0  # seconds, on a machine with much else to do


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(HOME))
    try:
        specification = importlib.util.spec_from_file_location("fuzz", HOME / "fuzz.py")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(HOME))
    return module


@pytest.mark.parametrize("name", list(INPUTS))
@pytest.mark.filterwarnings("ignore")
def test_malformed_inputs_are_refused(fuzz, tmp_path, name):
    if name == "server":
        pytest.importorskip("python_multipart", reason="opendino[serve] is not installed")
        try:
            importlib.import_module("starlette.testclient")
        except (ImportError, RuntimeError, Warning) as error:  # it has a wish of its own for a client
            pytest.skip(f"starlette's client cannot be imported ({error})")
    case = fuzz.TARGETS[name][0](tmp_path)

    @settings(max_examples=INPUTS[name], deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def one(rng):
        begun = time.perf_counter()
        try:
            with fuzz.quiet():
                case(rng)
        except OpendinoError as error:
            assert str(error).strip()
        assert time.perf_counter() - begun < LONGEST

    one()


def test_the_hunt_sees_what_fails(fuzz, monkeypatch):
    """A wrong error, the end of the process, a hang, memory and a file left open, each among inputs that are fine."""

    def target(_folder):
        kept = []

        def case(rng):
            number = case.number = getattr(case, "number", -1) + 1
            if number == 0:
                raise DataError("refused")
            if number == 1:
                raise KeyError("x")
            if number == 2:
                os._exit(7)

        def after(rng):
            kept.append(os.open("/dev/null", os.O_RDONLY))
            time.sleep(60)

        return case if not hasattr(target, "again") else after

    monkeypatch.setitem(fuzz.TARGETS, "made", (target, 1))
    found = fuzz.hunt("made", 3, 0, 1.0, 10_000.0)
    assert (found.inputs, found.refused) == (3, 1)
    assert found.failures == [(1, "KeyError: 'x'"), (2, "ended the process (exit status 7)")]
    target.again = True
    assert fuzz.hunt("made", 1, 0, 0.3, 10_000.0).failures == [(0, "took longer than 0.3 s")]
