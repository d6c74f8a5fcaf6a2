# SPDX-License-Identifier: Apache-2.0
import importlib.util
import logging
import sys

import pytest
import torch

from opendino.checkpoint.hub import load
from opendino.checkpoint.weights import save_weights
from opendino.errors import ConfigError
from opendino.export.shipping import ExportConfig, export, largest
from opendino.models.vision_transformer import VisionTransformer

PRESENT = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


needs_onnx = pytest.mark.skipif(not PRESENT, reason="onnx, onnxscript or onnxruntime is not installed")
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@needs_onnx
@quiet
@pytest.mark.parametrize(
    ("weights", "settings", "allowed"),
    [
        ("plain", {}, 1e-5),
        ("plain", {"precision": "int8"}, 0.2),
        ("registers and swiglu", {}, 1e-5),
        ("registers and swiglu", {"precision": "fp16"}, 0.02),
    ],
    indirect=["weights"],
)
def test_onnxruntime_computes_the_same(weights, tmp_path, settings, allowed, no_shape_checks, caplog):
    import onnxruntime

    done = export(weights, tmp_path / "x.onnx", ExportConfig(**settings))
    assert largest(done.differences) <= allowed
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == list(done.outputs)
    images = torch.randn(1, 3, 56, 56)
    found = session.run(["cls"], {"images": images.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), load(weights)(images), atol=allowed, rtol=0)


@needs_onnx
@quiet
def test_half_precision_holds_scores_beyond_its_range(tmp_path, no_shape_checks):
    """Queries and keys whose products are above 65504, what half precision holds, before they are scaled."""
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=28, patch_size=14, embed_dim=64, depth=1, num_heads=1, init_values=1.0)
    largest_product = 0.0

    def look(_module, _inputs, qkv):
        nonlocal largest_product
        q, k, _ = qkv.chunk(3, dim=-1)
        largest_product = float((q @ k.transpose(1, 2)).abs().max())

    with torch.no_grad():
        backbone.blocks[0].attn.qkv.weight[:128] *= 500
        torch.nn.init.normal_(backbone.pos_embed, std=2.0)
        backbone.blocks[0].attn.qkv.register_forward_hook(look)
        backbone.eval()(torch.randn(1, 3, 28, 28))
        assert largest_product > 2 * 65504
    save_weights(backbone, tmp_path / "w")
    config = ExportConfig(precision="fp16", dynamic="batch")
    assert largest(export(str(tmp_path / "w"), tmp_path / "x.onnx", config).differences) <= 0.02


def test_what_to_install_is_said(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"opendino\[onnx\]"):
        export(weights, tmp_path / "x.onnx", ExportConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
