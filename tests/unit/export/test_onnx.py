# SPDX-License-Identifier: Apache-2.0
import importlib.util

import pytest
import torch

from opendino.checkpoint.hub import load
from opendino.errors import ConfigError
from opendino.export.shipping import ExportConfig, export, largest

PRESENT = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.mark.skipif(not PRESENT, reason="onnx, onnxscript or onnxruntime is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({}, 1e-5), ({"dynamic": "batch"}, 1e-5), ({"precision": "fp16"}, 0.05), ({"precision": "int8"}, 0.2)],
)
def test_onnxruntime_computes_the_same(weights, tmp_path, settings, allowed, no_shape_checks):
    import onnxruntime

    done = export(weights, tmp_path / "x.onnx", ExportConfig(**settings))
    assert largest(done.differences) <= allowed
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == list(done.outputs)
    images = torch.randn(1, 3, 56, 56)
    found = session.run(["cls"], {"images": images.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), load(weights)(images), atol=allowed, rtol=0)


@pytest.mark.skipif(PRESENT, reason="ONNX's packages are installed")
def test_what_to_install_is_said(weights, tmp_path):
    with pytest.raises(ConfigError, match=r"opendino\[onnx\]"):
        export(weights, tmp_path / "x.onnx", ExportConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
