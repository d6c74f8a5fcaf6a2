# SPDX-License-Identifier: Apache-2.0
"""`opendino convert` from end to end, on files as users have them."""

from pathlib import Path

import pytest
import torch

import opendino
from opendino.cli.main import main
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture
def teacher(tmp_path):
    """A training checkpoint of the official repository: blocks in chunks, heads beside the backbone."""
    model = VisionTransformer(img_size=56, patch_size=14, embed_dim=64, depth=4, num_heads=1, init_values=1e-5)
    state = {}
    for name, tensor in model.state_dict().items():
        first, _, rest = name.partition(".")
        state["backbone." + (f"blocks.{int(rest[0]) // 2}.{rest}" if first == "blocks" else name)] = tensor
    state |= {f"{head}.mlp.0.weight": torch.ones(2, 2) for head in ("dino_head", "ibot_head")}
    torch.save({"teacher": state}, tmp_path / "teacher_checkpoint.pth")
    return model.eval(), tmp_path / "teacher_checkpoint.pth"


def run(capsys, *words):
    code = main(["convert", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_training_checkpoint_to_every_format_and_back(tmp_path, teacher, capsys):
    model, source = teacher
    code, out, _ = run(capsys, source, "--to", "hf", tmp_path / "hf")
    assert code == 0
    assert "left out, hf has no place for it: dino_head.mlp.0.weight, ibot_head.mlp.0.weight" in out
    assert "\nfeatures and masked patches on a fixed 56x56 image: largest difference 0.0e+00\n" in out
    code, out, _ = run(capsys, tmp_path / "hf", "--to=timm", tmp_path / "timm")
    assert code == 0
    assert "left out, timm has no place for it: mask_token" in out
    code, out, _ = run(capsys, tmp_path / "timm", tmp_path / "released.pth", "to=official")
    assert code == 0
    assert "not in the source, set to its starting value: mask_token" in out
    images = torch.randn(2, 3, 28, 42)
    opened = opendino.load(tmp_path / "released.pth")
    assert torch.equal(opened(images), model(images))
    released = torch.load(tmp_path / "released.pth", weights_only=True)
    assert released.keys() == model.state_dict().keys()


@pytest.mark.parametrize("target", ["out", "out.pth"])
def test_a_difference_above_the_tolerance_fails_and_leaves_nothing(tmp_path, teacher, capsys, monkeypatch, target):
    from opendino.checkpoint.convert import timm

    honest = timm.from_official

    def swapped(state, where="weights"):
        state = dict(state)
        state["blocks.0.norm1.bias"], state["blocks.1.norm1.bias"] = torch.ones(64), torch.zeros(64)
        return honest(state, where)

    monkeypatch.setattr(timm, "from_official", swapped)
    code, out, err = run(capsys, teacher[1], "--to", "timm", tmp_path / target)
    assert code == 2
    assert out == ""
    assert "its features differ from those of" in err
    assert "nothing was written" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher_checkpoint.pth"]


class Trap:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("code.pth", "trap", "holds Python objects, which are never unpickled here"),
        ("cut.safetensors", "cut", "cut.safetensors: cannot be read"),
        ("text.pth", b"<html>404</html>", "text.pth: "),
        ("text.safetensors", b"not weights", "text.safetensors: cannot be read"),
        ("lacks.pth", "lacks", "lacks blocks.3.attn.proj.bias, norm.bias"),
        ("extra.pth", "extra", "unexpected projector.weight"),
        ("shape.pth", "shape", "blocks.1.mlp.fc2.weight is 64x255 where 64x256 is wanted"),
        ("other.pth", {"conv1.weight": torch.ones(1)}, "holds no backbone: missing cls_token"),
    ],
)
def test_bad_files_get_one_sentence_each(tmp_path, teacher, capsys, name, content, message):
    state, path = dict(teacher[0].state_dict()), tmp_path / name
    if content == "trap":
        torch.save({"teacher": Trap(tmp_path / "ran")}, path)
    elif content == "cut":
        from safetensors.torch import save_file

        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        if content == "lacks":
            del state["norm.bias"], state["blocks.3.attn.proj.bias"]
        elif content == "extra":
            state["projector.weight"] = torch.ones(1)
        elif content == "shape":
            state["blocks.1.mlp.fc2.weight"] = torch.ones(64, 255)
        else:
            state = content
        torch.save(state, path)
    code, out, err = run(capsys, path, "--to", "hf", tmp_path / "hf")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert not (tmp_path / "hf").exists()
    assert not (tmp_path / "ran").exists()
