# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
import zipfile

import pytest
import torch

from opendino.checkpoint.hub import load
from opendino.errors import ConfigError
from opendino.export.shipping import ExportConfig, export, largest


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("dynamic", ["all", "none"])
def test_a_trace_runs_without_us(weights, tmp_path, dynamic, no_shape_checks):
    done = export(weights, tmp_path / "x.pt", ExportConfig(to="trace", dynamic=dynamic))
    assert largest(done.differences) <= 1e-5
    extra = {"opendino.json": ""}
    again = torch.jit.load(str(done.path), _extra_files=extra)
    assert json.loads(extra["opendino.json"])["outputs"] == list(done.outputs)
    images = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(again(images)[0], load(weights)(images), atol=1e-5, rtol=0)


def test_a_program_holds_at_other_sizes(weights, tmp_path, no_shape_checks):
    done = export(weights, tmp_path / "x.pt2", ExportConfig(to="program"))
    assert largest(done.differences) <= 1e-5
    images = torch.randn(3, 3, 28, 84)
    with torch.no_grad():
        again = torch.export.load(str(done.path)).module()(images)
        torch.testing.assert_close(again[0], load(weights)(images), atol=1e-5, rtol=0)


def test_machine_code_needs_a_compiler(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler was found"):
        export(weights, tmp_path / "x.pt2", ExportConfig(to="program", aot=True))
    assert [one.name for one in tmp_path.iterdir()] == ["w"]


@pytest.mark.skipif("OPENDINO_AOT" not in os.environ, reason="compiling takes a minute; OPENDINO_AOT=1 asks for it")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler was found")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", ["all", "none"])
def test_machine_code_computes_the_same(weights, tmp_path, dynamic, no_shape_checks):
    done = export(weights, tmp_path / "x.pt2", ExportConfig(to="program", aot=True, dynamic=dynamic))
    assert largest(done.differences) <= 1e-5
    with zipfile.ZipFile(done.path) as package:
        assert any(name.endswith(".so") for name in package.namelist())


def test_a_compiler_that_does_not_work_is_said(weights, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(ConfigError, match=r"does not compile; name a C\+\+ compiler in CXX"):
        export(weights, tmp_path / "x.pt2", ExportConfig(to="program", aot=True))
    assert not (tmp_path / "x.pt2").exists()
