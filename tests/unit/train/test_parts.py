# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from opendino.data.augment import CropsConfig
from opendino.errors import ConfigError
from opendino.methods.settings import DINOConfig, DINOv2Config, TeacherConfig
from opendino.models.presets import BackboneConfig
from opendino.optim.adamw import OptimConfig
from opendino.train.parts import build_method, build_optimizer, build_schedules, pick_device, training_shape

SMALL = BackboneConfig("vit_nano4", depth=1, embed_dim=16, num_heads=1, drop_path_rate=0.3)
CROPS = CropsConfig(global_size=16, local_size=8)
METHOD = DINOv2Config(dino=DINOConfig(prototypes=8, hidden_dim=16, bottleneck_dim=8))


def test_published_presets_are_trained_with_published_starts():
    """The hub's presets hold 518 pixels and a LayerScale of 1, to be loaded over; training needs neither."""
    shape = training_shape(BackboneConfig("vits14"), CropsConfig())
    assert (shape.img_size, shape.init_values, shape.in_chans) == (224, 1e-5, 3)
    own = training_shape(BackboneConfig("vits14", img_size=98, init_values=0.0, in_chans=5), CropsConfig())
    assert (own.img_size, own.init_values, own.in_chans) == (98, 0.0, 5)


def test_the_teacher_is_a_copy_without_stochastic_depth():
    method = build_method(training_shape(SMALL, CROPS), CROPS, METHOD)
    student, teacher = method.student.state_dict(), method.teacher.state_dict()
    assert all(student[key].equal(teacher[key]) for key in student)
    images = torch.randn(2, 3, 16, 16)
    backbone = method.teacher["backbone"].train()
    assert backbone(images).equal(backbone(images))
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())


def test_the_seed_decides_about_the_start():
    shape = training_shape(SMALL, CROPS)
    starts = [build_method(shape, CROPS, METHOD, seed).student.state_dict() for seed in (0, 0, 1)]
    assert all(starts[0][key].equal(starts[1][key]) for key in starts[0])
    assert not starts[0]["backbone.pos_embed"].equal(starts[2]["backbone.pos_embed"])
    assert not starts[0]["dino_head.last_layer.weight_v"].equal(starts[2]["dino_head.last_layer.weight_v"])


def test_the_backbone_says_what_images_it_was_trained_on():
    crops = CropsConfig(global_size=16, local_size=8, mean=(0.1, 0.2), std=(0.3, 0.4))
    method = build_method(training_shape(BackboneConfig("vit_nano4", depth=1, in_chans=2), crops), crops, METHOD)
    for network in (method.student, method.teacher):
        spec = network["backbone"].input_spec
        assert (spec.size, spec.channels, spec.mean, spec.std) == ((16, 16), 2, (0.1, 0.2), (0.3, 0.4))


def test_every_trained_parameter_is_in_one_group():
    method = build_method(training_shape(SMALL, CROPS), CROPS, METHOD)
    optimizer = build_optimizer(method, OptimConfig(betas=(0.8, 0.95)))
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in method.student.parameters())
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}


def test_published_schedules():
    """Facts 2.6, at the steps where the phases meet."""
    schedules = build_schedules(OptimConfig(), TeacherConfig(), 125_000, 2048)
    assert schedules.at(0) == {
        "lr": 0.0,
        "weight_decay": pytest.approx(0.04),
        "last_layer_lr": 0.0,
        "momentum": pytest.approx(0.992),
        "teacher_temp": pytest.approx(0.04),
    }
    assert schedules.at(1249)["last_layer_lr"] == 0.0
    at = schedules.at(1250)
    assert at["lr"] == at["last_layer_lr"] == pytest.approx(5.6573068e-4, rel=1e-6)
    assert at["teacher_temp"] == pytest.approx(0.041000027, rel=1e-6)
    at = schedules.at(62_500)
    assert (at["lr"], at["weight_decay"], at["momentum"]) == (
        pytest.approx(3.3199915e-3, rel=1e-6),
        pytest.approx(0.22, rel=1e-6),
        pytest.approx(0.996, rel=1e-6),
    )


def test_devices(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device"):
        pick_device("cuda")
