# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.checkpoint import store
from opendino.checkpoint.weights import save_weights
from opendino.config import load
from opendino.errors import CheckpointError, ConfigError
from opendino.layers.lora import add_lora
from opendino.models.presets import create
from opendino.train.config import PretrainConfig, method_config
from opendino.train.parts import build_method
from opendino.train.start import open_start


@pytest.fixture(scope="module")
def config(tiny_run):
    return load(PretrainConfig, tiny_run / "config.yaml")


def method_of(config, seed=5):
    return build_method(config.student, config.crops, method_config(config), seed)


def test_a_run_gives_student_teacher_heads_and_centres(tiny_run, config):
    start = open_start(str(tiny_run))
    method = method_of(config)
    start.put_into(method, "auto")
    saved = store.load(store.latest(tiny_run)).tensors
    assert (start.kind, start.step, start.settings["train.batch_size"]) == ("checkpoint", 6, 8)
    for part, network in (("student", method.student), ("teacher", method.teacher)):
        assert all(torch.equal(tensor, saved[part][name]) for name, tensor in network.state_dict().items())
    assert torch.equal(method.state_dict()["dino_loss.center"], saved["targets"]["dino_loss.center"])
    assert not torch.equal(start.student.norm.bias, start.backbone.norm.bias)


@pytest.mark.parametrize("named", ["a run's weights", "a run, its weights asked for"])
def test_weights_alone_leave_the_heads_as_drawn(tiny_run, config, named):
    start = open_start(*((str(tiny_run / "weights"),) if named == "a run's weights" else (str(tiny_run), "weights")))
    method, untouched = method_of(config), method_of(config)
    start.put_into(method, "auto")
    assert (start.kind, start.step, dict(start.heads)) == ("weights", 0, {})
    for network in ("student", "teacher"):
        own = method.get_submodule(network)
        assert torch.equal(own["backbone"].pos_embed, start.backbone.pos_embed)
        heads = untouched.student["dino_head"].state_dict()
        assert all(torch.equal(tensor, heads[name]) for name, tensor in own["dino_head"].state_dict().items())


def test_the_hash_is_of_the_weights_and_not_of_their_place(tiny_run, tmp_path):
    start = open_start(str(tiny_run), "weights")
    copy = save_weights(start.backbone, tmp_path / "copy")
    assert open_start(str(copy)).sha256 == start.sha256
    with torch.no_grad():
        start.backbone.norm.bias[0] += 1
    assert open_start(str(save_weights(start.backbone, tmp_path / "other"))).sha256 != start.sha256


def test_a_student_with_lora_is_replaced_by_its_teacher(tiny_run, monkeypatch):
    """Its thin products stand under other names; the teacher has followed them merged."""
    whole = store.load(store.latest(tiny_run))
    backbone = create("vit_custom", embed_dim=32, depth=2, num_heads=2)
    add_lora(backbone, "attn.qkv", 2, 2.0)
    other = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    heads = {name: tensor for name, tensor in whole.tensors["student"].items() if name.startswith("dino_head")}
    changed = whole._replace(tensors=whole.tensors | {"student": heads | other})
    monkeypatch.setattr(store, "load", lambda *_: changed)
    start = open_start(f"{tiny_run}/")
    assert start.student is start.backbone


def test_what_cannot_be_opened(tiny_run, config, tmp_path):
    with pytest.raises(ConfigError, match=r"init is missing: give init=RUN"):
        open_start("")
    with pytest.raises(CheckpointError, match="nowhere: no such file or folder"):
        open_start(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"is no run with a checkpoint; give a run folder, or adapt\.start=weights"):
        open_start(str(tiny_run / "weights"), "checkpoint")


def test_other_heads_are_refused_with_the_way_out(tiny_run, config):
    more = load(PretrainConfig, tiny_run / "config.yaml", ["dino.prototypes=48"])
    with pytest.raises(ConfigError, match=r"last_layer\.weight_g is 32x1 and not 48x1.*adapt\.start=weights"):
        open_start(str(tiny_run)).put_into(method_of(more), "auto")
