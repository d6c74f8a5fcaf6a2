# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import opendino
from opendino.checkpoint import hub
from opendino.checkpoint.weights import save_weights
from opendino.errors import CheckpointError, ConversionError
from opendino.models.vision_transformer import VisionTransformer

IMAGES = torch.linspace(-1, 1, 2 * 3 * 28 * 28).view(2, 3, 28, 28)


@pytest.fixture
def backbone():
    return VisionTransformer(img_size=28, patch_size=7, embed_dim=64, depth=4, num_heads=1, init_values=1.0).eval()


def assert_same(opened, backbone):
    torch.testing.assert_close(opened(IMAGES), backbone(IMAGES), rtol=0, atol=0)
    assert not opened.training


def test_a_run_and_its_weights_folder(tmp_path, backbone):
    save_weights(backbone, tmp_path / "run" / "weights")
    assert_same(hub.load(tmp_path / "run"), backbone)
    assert_same(opendino.load(str(tmp_path / "run" / "weights")), backbone)
    assert_same(hub.load(tmp_path / "run" / "weights" / "model.safetensors"), backbone)


def test_a_flat_published_file(tmp_path, backbone):
    torch.save(backbone.state_dict(), tmp_path / "flat.pth")
    assert_same(hub.load(tmp_path / "flat.pth"), backbone)


def test_a_bare_safetensors_file(tmp_path, backbone):
    save_file(dict(backbone.state_dict()), tmp_path / "x.safetensors")
    assert_same(hub.load(tmp_path / "x.safetensors"), backbone)


def chunked(state, size):
    names = {}
    for key, value in state.items():
        parts = key.split(".")
        names[key if parts[0] != "blocks" else ".".join(["blocks", str(int(parts[1]) // size), *parts[1:]])] = value
    return names


@pytest.mark.parametrize("around", ["", "module."])
def test_a_training_checkpoint_with_chunks_and_heads(tmp_path, backbone, around):
    teacher = {f"{around}backbone.{key}": value for key, value in chunked(backbone.state_dict(), 2).items()}
    assert f"{around}backbone.blocks.1.3.norm1.weight" in teacher
    teacher |= {f"{around}dino_head.mlp.0.weight": torch.zeros(2, 2), f"{around}ibot_head.mlp.0.weight": torch.zeros(2)}
    torch.save({"teacher": teacher}, tmp_path / "teacher.pth")
    assert_same(hub.load(tmp_path / "teacher.pth"), backbone)


def test_input_of_a_518_table(tmp_path):
    model = VisionTransformer(img_size=518, patch_size=14, embed_dim=64, depth=1, num_heads=1)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    opened = hub.load(tmp_path / "x.pth")
    assert opened.input_spec.size == (224, 224)
    assert opened.grid == (37, 37)


def test_heads_of_another_width_are_given(tmp_path):
    model = VisionTransformer(img_size=28, patch_size=7, embed_dim=48, depth=1, num_heads=3).eval()
    torch.save(model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(ConversionError, match="num_heads="):
        hub.load(tmp_path / "x.pth")
    assert_same(hub.load(tmp_path / "x.pth", num_heads=3), model)


def test_more_than_a_backbone_is_refused(tmp_path, backbone):
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    torch.save({**state, "projector.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ConversionError, match=r"x\.pth: unexpected projector\.weight beside the backbone 'backbone\.'"):
        hub.load(tmp_path / "x.pth")


def test_nothing_is_unpickled(tmp_path):
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (ran,))

    torch.save({"teacher": Trap()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="never unpickled"):
        hub.load(tmp_path / "x.pth")
    assert not ran.exists()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 half a zip"])
def test_a_damaged_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: .*again"):
        hub.load(tmp_path / name)


def test_a_file_cut_short(tmp_path, backbone):
    torch.save(backbone.state_dict(), tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"x.pth: .*again"):
        hub.load(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2_vitb14", "get https://.*/dinov2_vitb14/dinov2_vitb14_pretrain.pth and put it there"),
        ("dinov2_vits14_reg", "/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"),
        ("vits14", r"architecture without weights; build it by opendino.create\('vits14'\)"),
        ("runs/nowhere", "runs/nowhere: no such file or folder; give a run folder"),
        ("nowhere/at-all", "nowhere/at-all: no such file .*; as a repository: nowhere/at-all: config.json is not in "),
        ("facebook/dinov2-basee", "did you mean facebook/dinov2-base"),
        ("facebook/dinov2-base", "run `hf download facebook/dinov2-base` where there is a network"),
        ("a/b/c", "a/b/c: no such file or folder; give a run folder"),
    ],
)
def test_names_that_are_no_files(tmp_path, monkeypatch, name, message):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=message):
        hub.load(name)


def test_folders_and_files_that_are_something_else(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights; looked for"):
        hub.load(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(CheckpointError, match="has not written weights/ yet"):
        hub.load(tmp_path)
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not a weights file"):
        hub.load(picture)
    step = tmp_path / "checkpoints" / "step_00000010"
    step.mkdir(parents=True)
    (step / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="give the run folder itself"):
        hub.load(step)
