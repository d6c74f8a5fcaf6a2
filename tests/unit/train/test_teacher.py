# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.config import load
from opendino.errors import CheckpointError
from opendino.layers.dino_head import DINOHead
from opendino.models.presets import create
from opendino.train.config import PretrainConfig
from opendino.train.pretrain import build_run, pretrain
from opendino.train.teacher import digest, head_of, open_teacher, sizes_of


def test_a_run_brings_its_heads_its_centres_and_its_settings(tiny_words):
    words = [*tiny_words, "ibot.separate_head=true", "ibot.prototypes=16", "ibot.nlayers=1", "train.iterations=2"]
    config = load(PretrainConfig, None, words)
    pretrain(config)
    teacher = open_teacher(config.output_dir)
    assert list(teacher.network) == ["backbone", "dino_head", "ibot_head"]
    assert sizes_of(teacher.network["dino_head"]) == {"hidden_dim": 32, "bottleneck_dim": 16, "nlayers": 3}
    assert sizes_of(teacher.network["ibot_head"])["nlayers"] == 1
    assert teacher.network["ibot_head"].out_dim == 16
    assert set(teacher.centers) == {"dino_loss.center", "ibot_patch_loss.center"}
    assert teacher.settings["dino.prototypes"] == 32
    assert teacher.has_heads
    assert not any(p.requires_grad for p in teacher.network.parameters())
    # The same numbers wherever they are read, and none of the student's.
    assert open_teacher(config.output_dir).sha256 == teacher.sha256
    untrained = build_run(config).method.teacher.state_dict()
    assert not torch.equal(teacher.network.state_dict()["backbone.norm.weight"], untrained["backbone.norm.weight"])


def test_what_is_no_run_is_a_backbone_alone(tmp_path):
    backbone = create("vit_nano4", depth=1)
    folder = save_weights(backbone, tmp_path / "weights")
    teacher = open_teacher(str(folder))
    assert (list(teacher.network), teacher.settings, teacher.has_heads) == (["backbone"], {}, False)
    assert all(map(torch.equal, teacher.backbone.state_dict().values(), backbone.state_dict().values()))


def test_a_training_checkpoint_of_the_official_code_brings_its_heads(tmp_path):
    backbone, head = create("vit_nano4", depth=1), DINOHead(128, 24, 20, 12, 2)
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    state |= {f"dino_head.{name}": tensor for name, tensor in head.state_dict().items()}
    torch.save({"teacher": state}, tmp_path / "teacher_checkpoint.pth")
    teacher = open_teacher(str(tmp_path / "teacher_checkpoint.pth"))
    tokens = torch.randn(3, 128)
    assert torch.equal(teacher.network["dino_head"](tokens), head(tokens))


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_head_is_built_as_its_weights_say(layers):
    head = DINOHead(12, 24, 20, 8, layers)
    built = head_of(head.state_dict(), "here")
    tokens = torch.randn(3, 12)
    assert torch.equal(built(tokens), head(tokens))
    assert sizes_of(built) == {"hidden_dim": 20 if layers > 1 else 8, "bottleneck_dim": 8, "nlayers": layers}


def test_what_is_no_head_is_said():
    with pytest.raises(CheckpointError, match="here: is no projection head"):
        head_of({"last_layer.weight_v": torch.zeros(3, 2)}, "here")
    state = DINOHead(12, 24, 20, 8, 2).state_dict()
    del state["mlp.0.bias"]
    with pytest.raises(CheckpointError, match=r"here: is no projection head.*mlp\.0\.bias"):
        head_of(state, "here")


def test_a_digest_is_of_names_shapes_and_values():
    state = {"a": torch.arange(4.0), "b": torch.ones(2)}
    assert digest(state) == digest(dict(reversed(state.items())))
    others = [{"a": state["a"].view(2, 2), "b": state["b"]}, {"a": state["a"], "c": state["b"]}]
    others.append({"a": state["a"] + 1e-6, "b": state["b"]})
    assert len({digest(state), *map(digest, others)}) == 4
