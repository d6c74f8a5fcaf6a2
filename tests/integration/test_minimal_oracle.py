# SPDX-License-Identifier: Apache-2.0
"""The package and `examples/minimal_dinov2.py` from the same weights: the same losses, gradients and updates."""

import importlib.util
import random
from pathlib import Path

import pytest
import torch

from opendino.data.collate import PretrainBatch
from opendino.methods.dinov2 import DINOv2
from opendino.methods.settings import DINOConfig, DINOv2Config, IBOTConfig, TeacherConfig
from opendino.models.vision_transformer import VisionTransformer
from opendino.optim.adamw import OptimConfig, adamw
from opendino.optim.param_groups import param_groups
from opendino.train.loop import Run, train_step
from opendino.train.parts import build_schedules

PAGE = Path(__file__).parents[2] / "examples" / "minimal_dinov2.py"
KINDS = pytest.mark.parametrize(("sinkhorn", "separate_head"), [(s, h) for s in (False, True) for h in (False, True)])


@pytest.fixture(scope="module")
def page():
    specification = importlib.util.spec_from_file_location("minimal_dinov2", PAGE)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def build_both(page, sinkhorn, separate_head):
    """The page's student, teacher, centres and optimizer; the package's method and optimizer, with its weights."""
    random.seed(0)
    torch.manual_seed(0)
    student, teacher = page.build_network(separate_head), page.build_network(separate_head)
    with torch.no_grad():  # weights at which no part is idle: at the start LayerScale and tokens hide a lot
        for name, parameter in student.named_parameters():
            if "head" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    centers = None if sinkhorn else {"dino": torch.zeros(page.PROTOTYPES), "ibot": torch.zeros(page.PROTOTYPES)}
    head = {"prototypes": page.PROTOTYPES, "hidden_dim": page.HIDDEN, "bottleneck_dim": page.BOTTLENECK}
    config = DINOv2Config(
        dino=DINOConfig(centering="sinkhorn_knopp" if sinkhorn else "centering", **head),
        ibot=IBOTConfig(separate_head=separate_head, **head),
    )
    shape = {"embed_dim": page.DIM, "depth": page.DEPTH, "num_heads": page.HEADS, "init_values": 1.0}
    backbones = [VisionTransformer(page.IMAGE, page.PATCH, **shape) for _ in range(2)]
    method = DINOv2(*backbones, config)
    method.student.load_state_dict(student.state_dict(), strict=True)
    method.reset_teacher()
    theirs = torch.optim.AdamW(page.parameter_groups(student))
    ours = adamw(param_groups(method.student), OptimConfig())
    return (student, teacher, centers, theirs), (method, ours)


def as_batch(globals_, locals_, masks):
    counts = masks.sum(dim=1)
    return PretrainBatch(
        global_crops=torch.cat(globals_),
        local_crops=torch.cat(locals_),
        masks=masks,
        mask_indices=masks.flatten().nonzero().flatten(),
        masks_weight=torch.repeat_interleave(1 / counts.clamp_min(1), counts),
        images=len(globals_[0]),
        ids=torch.arange(len(globals_[0])),
    )


def schedules_of(page):
    optim = OptimConfig(
        base_lr=page.PEAK_LR,
        lr_scaling="none",
        min_lr=page.MIN_LR,
        warmup=page.WARMUP,
        freeze_last_layer=page.FREEZE,
    )
    return build_schedules(optim, TeacherConfig(), page.STEPS, page.BATCH)


def without_effect(name, gradient):
    """Where a gradient is rounding noise: a bias of all keys shifts all scores of a query alike."""
    if not name.endswith("attn.qkv.bias"):
        return gradient
    third = len(gradient) // 3
    return torch.cat([gradient[:third], gradient[2 * third :]])


@KINDS
def test_losses_and_gradients_of_one_batch(page, sinkhorn, separate_head):
    (student, teacher, centers, _), (method, _) = build_both(page, sinkhorn, separate_head)
    batch = page.make_batch()
    wanted = page.loss_terms(student, teacher, centers, batch, 0.05)
    sum(wanted.values()).backward()
    output = method(as_batch(*batch), 0.05)
    output.loss.backward()
    for name, term in wanted.items():
        assert output.terms[name].item() == pytest.approx(term.item(), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in method.student.named_parameters()}
    for name, parameter in student.named_parameters():
        scale = parameter.grad.abs().max().item()
        assert scale > 1e-4, f"{name} hardly learns, so nothing is compared"
        assert (gradients[name] - parameter.grad).abs().max() < 1e-5 * max(scale, 1), name
    if centers:
        assert torch.allclose(method.dino_loss.center.flatten(), centers["dino"], atol=1e-7)
        assert torch.allclose(method.ibot_patch_loss.center.flatten(), centers["ibot"], atol=1e-7)


@KINDS
def test_losses_and_weights_over_several_steps(page, sinkhorn, separate_head):
    (student, teacher, centers, theirs), (method, ours) = build_both(page, sinkhorn, separate_head)
    run = Run(method, ours, schedules_of(page), page.STEPS, 0, "fp32", torch.device("cpu"), clip_grad=3.0)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    for step in range(8):
        batch = page.make_batch()
        wanted = page.train_step(step, student, teacher, centers, theirs, batch)
        record = train_step(run, as_batch(*batch))
        found = {name: record[f"loss/{name}"] for name in wanted}
        assert found == pytest.approx(wanted, rel=2e-5), f"step {step}"
    for networks, reference in ((method.student, student), (method.teacher, teacher)):
        state = networks.state_dict()
        for name, tensor in reference.state_dict().items():
            difference = without_effect(name, state[name] - tensor).abs().max().item()
            assert difference < 2e-5, name
    moved = [name for name, tensor in teacher.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(moved) == len(before)


def test_the_page_runs_as_it_stands(page, capsys, monkeypatch):
    monkeypatch.setattr(page, "STEPS", 8)
    page.main(separate_head=True, sinkhorn=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    losses = [float(line.split("loss")[1].split()[0]) for line in lines]
    assert losses[-1] < losses[0]
