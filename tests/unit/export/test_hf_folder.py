# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.checkpoint.hub import load
from opendino.errors import ConversionError
from opendino.export import hf_folder
from opendino.export.shipping import Difference, ExportConfig, export, largest

transformers = pytest.importorskip("transformers")


def test_transformers_computes_the_same(weights, tmp_path):
    done = export(weights, tmp_path / "hub", ExportConfig(to="hf"))
    assert largest(done.differences) <= 1e-5
    assert len(done.differences) == 2
    images = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(str(done.path))(images).pooler_output
    torch.testing.assert_close(theirs, load(weights)(images), atol=1e-5, rtol=0)
    assert "AutoImageProcessor" in (done.path / "README.md").read_text()


def test_another_result_leaves_no_folder(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_folder, "_by_transformers", lambda folder: Difference((1, 3, 8, 8), "x", float("nan")))
    with pytest.raises(ConversionError, match="transformers computes features that differ"):
        export(weights, tmp_path / "hub", ExportConfig(to="hf"))
    assert not (tmp_path / "hub").exists()
