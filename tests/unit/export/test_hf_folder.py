# SPDX-License-Identifier: Apache-2.0
import importlib.util

import pytest
import torch
from PIL import Image

from opendino import hf
from opendino.checkpoint.hub import load
from opendino.checkpoint.weights import save_weights
from opendino.errors import ConversionError
from opendino.export import hf_folder
from opendino.export.shipping import Difference, ExportConfig, export, largest
from opendino.models.classifier import LinearClassifier
from opendino.models.vision_transformer import VisionTransformer

transformers = pytest.importorskip("transformers")


def test_transformers_computes_the_same(weights, tmp_path):
    done = export(weights, tmp_path / "hub", ExportConfig(to="hf"))
    assert largest(done.differences) <= 1e-5
    assert done.differences[0].images == (1, 3, 56, 56)
    sizes = {one.images[2:] for one in done.differences if one.of == "last_hidden_state by transformers"}
    assert sizes == {(56, 56), (84, 126), (28, 42)}
    assert all((done.path / one).stat().st_mode & 0o077 for one in ("model.safetensors", "config.json", "README.md"))
    images = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(str(done.path))(images).pooler_output
    torch.testing.assert_close(theirs, load(weights)(images), atol=1e-5, rtol=0)
    assert "AutoImageProcessor" in (done.path / "README.md").read_text()


def test_another_result_leaves_no_folder(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_folder, "_by_transformers", lambda *_: ([Difference((1, 3, 8, 8), "x", float("nan"))], []))
    with pytest.raises(ConversionError, match=r"x of images \[1, 3, 8, 8\] differ by nan, more than"):
        export(weights, tmp_path / "hub", ExportConfig(to="hf"))
    assert not (tmp_path / "hub").exists()


def test_a_classifier_is_compared_by_its_logits(tmp_path):
    backbone = VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1)
    torch.save(LinearClassifier(backbone, classes=3, layers=1).state_dict(), tmp_path / "lc.pth")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    done = export(str(tmp_path / "lc.pth"), tmp_path / "hub", ExportConfig(to="hf", images=str(tmp_path / "a.png")))
    assert done.outputs == ("logits",)
    assert {(one.kind, one.of) for one in done.differences[1:]} == {
        ("noise", "logits by transformers"),
        ("photographs", "logits by transformers"),
    }
    assert largest(done.differences) <= 1e-5
    assert any(note.startswith("transformers resizes the position table by its own rule") for note in done.notes)


def test_without_transformers_that_is_said(weights, tmp_path, monkeypatch):
    honest = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "transformers" else honest(name))
    done = export(weights, tmp_path / "hub", ExportConfig(to="hf"))
    assert len(done.differences) == 1
    assert done.notes[-1].startswith("transformers is not installed")


@pytest.mark.parametrize("settings", [{"mlp_ratio": 3.5}, {"img_size": (16, 24), "in_chans": 5}])
def test_what_transformers_has_no_place_for_is_compared_by_our_own_class(tmp_path, settings):
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 1}
    backbone = VisionTransformer(**(shape | settings))
    torch.nn.init.normal_(backbone.pos_embed, std=0.5)
    save_weights(backbone, tmp_path / "w")
    done = export(str(tmp_path / "w"), tmp_path / "hub", ExportConfig(to="hf"))
    assert largest(done.differences) <= 1e-5
    if "mlp_ratio" in settings and transformers.__version__ < "5":
        return  # it took fractions then
    assert {one.of for one in done.differences[1:]} == {"last_hidden_state by opendino.hf"}
    assert any("transformers' own class cannot run it" in note for note in done.notes)


def test_a_folder_that_nobody_opens_is_not_left(weights, tmp_path, monkeypatch):
    def refuse(*_arguments, **_settings):
        raise ValueError("no such thing\nand more")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", refuse)
    monkeypatch.setattr(hf.AutoModel, "from_pretrained", refuse)
    with pytest.raises(ConversionError, match=r"transformers cannot open it \(no such thing\); nothing was written"):
        export(weights, tmp_path / "hub", ExportConfig(to="hf"))
    assert not (tmp_path / "hub").exists()
