# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
import torch

from opendino.data.collate import PretrainBatch
from opendino.layers.lora import merge_lora
from opendino.losses.gram import gram_loss
from opendino.methods.adapt import Adaptation, GramConfig
from opendino.methods.settings import DINOConfig, DINOv2Config, IBOTConfig
from opendino.models.presets import create

HEAD = {"prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8}


def method():
    torch.manual_seed(1)
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 0.5}
    config = DINOv2Config(dino=DINOConfig(**HEAD, centering="sinkhorn_knopp"), ibot=IBOTConfig())
    return Adaptation(create("vit_custom", **shape), create("vit_custom", **shape), config)


def batch(images=4):
    rng = np.random.default_rng(0)
    masks = torch.zeros(2 * images, 4, dtype=torch.bool)
    masks[::2, :2] = True
    draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape)).float()  # noqa: E731
    return PretrainBatch(
        global_crops=draw(2 * images, 3, 16, 16),
        local_crops=draw(2 * images, 3, 8, 8),
        masks=masks,
        mask_indices=masks.flatten().nonzero().flatten(),
        masks_weight=torch.full((int(masks.sum()),), 0.5),
        images=images,
        ids=torch.arange(images),
    )


def step(model, number, momentum=0.5):
    """A step as the loop does it, without decay or clipping."""
    model.begin_step(number)
    for part in model.parameters():
        part.grad = None
    model(batch(), 0.05).loss.backward()
    with torch.no_grad():
        for part in model.student.parameters():
            if part.grad is not None:
                part -= 0.1 * part.grad
    model.update_teacher(momentum)


def copies(module):
    return {name: part.detach().clone() for name, part in module.named_parameters()}


def changed(module, before):
    return {name for name, part in module.named_parameters() if not torch.equal(part, before[name])}


def test_heads_alone_learn_first_and_the_backbone_stays_to_the_last_bit():
    model = method()
    model.head_steps = 2
    student, teacher = copies(model.student), copies(model.teacher)
    for number in range(2):
        step(model, number)
    assert {name.partition(".")[0] for name in changed(model.student, student)} == {"dino_head"}
    assert {name.partition(".")[0] for name in changed(model.teacher, teacher)} == {"dino_head"}
    assert all(part.grad is None for part in model.student["backbone"].parameters()), "nor is a gradient computed"
    step(model, 2)
    assert "backbone.blocks.0.attn.qkv.weight" in changed(model.student, student)
    assert "backbone.blocks.0.attn.qkv.weight" in changed(model.teacher, teacher)


def test_a_run_that_begins_after_the_border_is_not_frozen():
    model = method()
    model.head_steps = 2
    for number, learns in ((5, True), (1, False), (2, True)):
        model.begin_step(number)
        assert model.student_views(batch()).cls.requires_grad is learns
    with torch.no_grad():
        assert not model.student_views(batch()).cls.requires_grad, "nor where nobody asks for gradients"


def test_without_lora_the_teacher_is_the_moving_average():
    model = method()
    model.begin_step(0)
    with torch.no_grad():
        for part in model.student.parameters():
            part.fill_(1)
        for part in model.teacher.parameters():
            part.fill_(3)
    model.update_teacher(0.75)
    assert all(torch.equal(part, torch.full_like(part, 2.5)) for part in model.teacher.parameters())


def test_with_lora_the_teacher_follows_the_merged_student_under_official_names():
    model = method()
    official = list(model.teacher["backbone"].state_dict())
    names = model.use_lora(2, 4.0, r"attn\.(qkv|proj)", "mask_token")
    assert names == [f"blocks.{block}.attn.{layer}" for block in range(2) for layer in ("qkv", "proj")]
    student = copies(model.student["backbone"])
    for number in range(3):
        step(model, number, momentum=0.0)  # the teacher becomes the student
    moved = changed(model.student["backbone"], student)
    assert moved == {"mask_token"} | {f"{name}.{part}" for name in names for part in ("down", "up")}
    assert list(model.teacher["backbone"].state_dict()) == official
    images = torch.randn(2, 3, 16, 16)
    model.eval()
    applied = model.student["backbone"].forward_features(images)["x_norm_clstoken"]
    taught = model.teacher["backbone"].forward_features(images)["x_norm_clstoken"]
    torch.testing.assert_close(applied, taught, atol=1e-5, rtol=1e-5)
    merge_lora(model.student["backbone"])
    assert all(
        torch.allclose(tensor, model.student["backbone"].state_dict()[name], atol=1e-7)
        for name, tensor in model.teacher["backbone"].state_dict().items()
    )


def test_the_average_is_one_of_weights_and_not_of_thin_factors():
    model = method()
    model.use_lora(1, 1.0, r"blocks\.0\.attn\.proj", "mask_token")
    layer = model.student["backbone"].blocks[0].attn.proj
    start = layer.linear.weight.clone()
    with torch.no_grad():
        layer.up.fill_(2)
        layer.down.fill_(3)
    model.update_teacher(0.75)
    # Averaged factors would give 0.5 * 3 = 1.5 at most, of weights a quarter of 6.
    assert torch.allclose(model.teacher["backbone"].blocks[0].attn.proj.weight, start + 1.5)
    with torch.no_grad():
        layer.up.fill_(-2)
    model.update_teacher(0.75)
    assert torch.allclose(model.teacher["backbone"].blocks[0].attn.proj.weight, start + 0.75 * 1.5 - 0.25 * 6)


def test_with_lora_nothing_else_learns_before_or_behind_the_border():
    model = method()
    model.use_lora(2, 4.0, r"attn\.qkv", "mask_token|patch_embed")
    model.head_steps = 1
    learning = {"mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias"} | {
        f"blocks.{block}.attn.qkv.{part}" for block in range(2) for part in ("down", "up")
    }
    for number, wanted in ((0, set()), (1, learning)):
        step(model, number)
        backbone = model.student["backbone"]
        assert {name for name, part in backbone.named_parameters() if part.grad is not None} == wanted


@pytest.mark.parametrize("lora", [False, True])
def test_both_networks_start_from_the_same(lora):
    model = method()
    if lora:
        model.use_lora(2, 4.0, r"attn\.qkv", "mask_token")
    before = copies(model.teacher)
    model.update_teacher(0.3)
    assert changed(model.teacher, before) == set()


def anchored(size=0):
    model = method()
    anchor = create("vit_custom", img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, init_values=0.5)
    anchor.load_state_dict(model.teacher["backbone"].state_dict())
    model.anchor_to(anchor, GramConfig(loss_weight=2.0, size=size), (anchor.input_spec.mean, anchor.input_spec.std))
    return model, anchor


def unmasked():
    one = batch()
    none = torch.zeros_like(one.masks)
    return dataclasses.replace(one, masks=none, mask_indices=one.mask_indices[:0], masks_weight=one.masks_weight[:0])


def test_what_is_as_at_the_start_costs_nothing():
    model, _ = anchored()
    assert model(unmasked(), 0.05).terms["gram"].item() < 1e-9
    with torch.no_grad():
        model.student["backbone"].blocks[1].attn.proj.weight.mul_(3)
    assert model(unmasked(), 0.05).terms["gram"].item() > 1e-6


def test_the_gram_term_is_that_of_the_visible_patches_and_part_of_the_loss():
    model, anchor = anchored()
    with torch.no_grad():
        model.student["backbone"].blocks[1].attn.proj.weight.mul_(3)
    model.eval()  # what is drawn would differ
    output, one = model(batch(), 0.05), batch()
    own = model.student["backbone"].forward_features(one.global_crops, one.masks)["x_norm_patchtokens"]
    wanted = anchor.forward_features(one.global_crops)["x_norm_patchtokens"]
    torch.testing.assert_close(output.terms["gram"], 2.0 * gram_loss(own, wanted, one.masks).detach())
    torch.testing.assert_close(output.loss.detach(), sum(output.terms.values()))


def test_the_anchor_is_frozen_and_no_part_of_the_state():
    model, anchor = anchored(size=32)
    before = copies(anchor)
    names = set(model.state_dict())
    for number in range(3):
        step(model, number)
    assert changed(anchor, before) == set()
    assert names == set(method().state_dict())
    assert {parameter.device.type for parameter in model.to("meta").guide.parameters()} == {"meta"}, "it moves along"


def test_a_batch_in_parts_has_the_same_gram_term():
    model, _ = anchored()
    with torch.no_grad():
        model.student["backbone"].blocks[1].attn.proj.weight.mul_(3)
    whole = model(batch(), 0.05).terms["gram"]
    parts = [output.terms["gram"] for output in model.passes(batch(), 0.05, 2)]
    torch.testing.assert_close(sum(parts), whole)


def test_the_term_holds_the_patches_together():
    """Without it the same steps move the patches' cosines further."""
    moved = []
    for weight in (0.0, 200.0):
        model, anchor = anchored()
        model.gram_weight = weight
        for number in range(6):
            step(model, number)
        own = model.student["backbone"].eval().forward_features(batch().global_crops)["x_norm_patchtokens"]
        moved.append(gram_loss(own, anchor.forward_features(batch().global_crops)["x_norm_patchtokens"]).item())
    assert moved[1] < 0.5 * moved[0]
