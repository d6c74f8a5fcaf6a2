# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from safetensors.torch import load_file

from opendino.checkpoint import hub, weights
from opendino.errors import CheckpointError, ModelError
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture
def backbone():
    model = VisionTransformer(
        img_size=32, patch_size=8, in_chans=4, embed_dim=48, depth=2, num_heads=3, init_values=0.1
    )
    model.input_spec = InputSpec((40, 40), 4, (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8))
    return model


def test_round_trip(tmp_path, backbone):
    backbone.train()
    folder = weights.save_weights(backbone, tmp_path / "run" / "weights", {"step": 7})
    opened = weights.load_weights(folder)
    images = torch.randn(2, 4, 40, 24)
    torch.testing.assert_close(opened(images), backbone.eval()(images), rtol=0, atol=0)
    assert opened.input_spec == backbone.input_spec
    assert not opened.training
    assert opened.num_heads == 3


def test_the_folder_is_what_it_says(tmp_path, backbone):
    folder = weights.save_weights(backbone, tmp_path / "w", {"step": 7})
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "model.safetensors", "model.safetensors.sha256",
    ]  # fmt: skip
    assert load_file(folder / "model.safetensors").keys() == backbone.state_dict().keys()
    config = json.loads((folder / "config.json").read_text())
    assert config["provenance"]["step"] == 7
    assert config["backbone"]["embed_dim"] == 48
    assert config["input_spec"]["mean"] == [0.1, 0.2, 0.3, 0.4]
    assert (folder / "model.safetensors.sha256").read_text().endswith("  model.safetensors\n")


def test_a_non_square_table_round_trips(tmp_path):
    model = VisionTransformer(img_size=(16, 32), patch_size=8, embed_dim=64, depth=1, num_heads=1).eval()
    opened = weights.load_weights(weights.save_weights(model, tmp_path / "w"))
    images = torch.randn(1, 3, 16, 32)
    torch.testing.assert_close(opened(images), model(images), rtol=0, atol=0)


def test_altered_bytes_are_noticed(tmp_path, backbone):
    folder = weights.save_weights(backbone, tmp_path / "w")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"its hash is .* was altered or copied in part"):
        weights.load_weights(folder)


def test_readers_leave_a_writer_between_its_two_renames_alone(tmp_path, backbone):
    run = tmp_path / "run"
    folder = weights.save_weights(backbone, run / "weights")
    folder.rename(run / ".weights.previous")
    images = torch.randn(1, 4, 32, 32)
    expected = backbone.eval()(images)
    for opened in (
        weights.load_weights(folder),
        hub.load(run),
        hub.load(folder),
        hub.load(folder / "model.safetensors"),
    ):
        torch.testing.assert_close(opened(images), expected, rtol=0, atol=0)
    assert [path.name for path in run.iterdir()] == [".weights.previous"]


@pytest.mark.parametrize("read", [lambda run: weights.load_weights(run / "weights"), hub.load])
def test_a_folder_replaced_while_it_is_read_is_read_again(tmp_path, backbone, monkeypatch, read):
    """The hash of the old file is compared with that of the new one."""
    run, calls = tmp_path / "run", []
    weights.save_weights(backbone, run / "weights")
    real = weights.sha256

    def swap(path):
        calls.append(path)
        if len(calls) == 1:
            found = real(path)
            with torch.no_grad():
                backbone.cls_token.add_(1)
            monkeypatch.setattr(weights, "sha256", real)
            weights.save_weights(backbone, run / "weights")
            monkeypatch.setattr(weights, "sha256", swap)
            return found[::-1]
        return real(path)

    monkeypatch.setattr(weights, "sha256", swap)
    assert read(run).cls_token.equal(backbone.cls_token)
    assert len(calls) == 2


def test_a_missing_hash_is_a_warning(tmp_path, backbone, caplog):
    folder = weights.save_weights(backbone, tmp_path / "w")
    (folder / "model.safetensors.sha256").unlink()
    weights.load_weights(folder)
    assert "taken unchecked" in caplog.text


def spoil(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json; a weights folder holds"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: spoil(f, kind=None, model_type="dinov2"), "describes dinov2, not an opendino backbone"),
        (lambda f: spoil(f, format=2), "is of layout 2, this version reads 1"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(tmp_path, backbone, fault, message):
    folder = weights.save_weights(backbone, tmp_path / "w")
    fault(folder)
    with pytest.raises(CheckpointError, match=message):
        weights.load_weights(folder)


def test_a_folder_that_cannot_be_written(tmp_path, backbone):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="the weights could not be written"):
        weights.save_weights(backbone, tmp_path / "file" / "weights")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), None), (("backbone",), 3), (("backbone", "img_size"), None), (("input_spec",), [1]),
        (("input_spec", "mean"), "abc"), (("backbone", "depth"), 10**9), (("backbone", "num_heads"), "two"),
        (("backbone", "mlp_ratio"), float("nan")), (("backbone", "other"), 1), (("backbone", "depth"), None),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused(tmp_path, backbone, place, value):
    """Also a depth for which a billion blocks would be built."""
    folder = weights.save_weights(backbone, tmp_path / "w")
    config = json.loads((folder / "config.json").read_text())
    node = config
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, ModelError)):
        weights.load_weights(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"\n", b"x"])
def test_a_damaged_hash_is_not_that_of_the_weights(tmp_path, backbone, content):
    folder = weights.save_weights(backbone, tmp_path / "w")
    (folder / "model.safetensors.sha256").write_bytes(content)
    with pytest.raises(CheckpointError, match="its hash is"):
        weights.load_weights(folder)
