# SPDX-License-Identifier: Apache-2.0
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from opendino.data.collate import PretrainBatch
from opendino.data.masking import MaskConfig, batch_masks
from opendino.errors import ModelError
from opendino.losses import _chunked
from opendino.losses._chunked import Unprojected
from opendino.methods import dinov2
from opendino.methods.dinov2 import DINOv2
from opendino.methods.settings import DINOConfig, DINOv2Config, IBOTConfig, KoLeoConfig
from opendino.models.vision_transformer import VisionTransformer

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 0.5}
HEAD = {"prototypes": 24, "hidden_dim": 16, "bottleneck_dim": 8}
TERMS = ("dino_local", "dino_global", "ibot", "koleo")


def made_batch(images=3, n_locals=2, masks=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = batch_masks(2 * images, (4, 4), masks or MaskConfig(), np.random.default_rng(seed))
    return PretrainBatch(
        global_crops=torch.randn(2 * images, 3, 16, 16, generator=generator),
        local_crops=torch.randn(n_locals * images, 3, 8, 8, generator=generator),
        masks=found.masks,
        mask_indices=found.indices,
        masks_weight=found.weights,
        images=images,
        ids=torch.arange(images),
    )


def made_method(dino=1.0, ibot=1.0, koleo=0.1, separate_head=False, centering="centering", drop_path=0.0, seed=0):
    torch.manual_seed(seed)
    config = DINOv2Config(
        dino=DINOConfig(loss_weight=dino, centering=centering, **HEAD),
        ibot=IBOTConfig(loss_weight=ibot, separate_head=separate_head, **{**HEAD, "prototypes": 20}),
        koleo=KoLeoConfig(loss_weight=koleo),
    )
    return DINOv2(VisionTransformer(**SHAPE, drop_path_rate=drop_path), VisionTransformer(**SHAPE), config)


WEIGHTS = [weights for weights in itertools.product([0.0, 0.7], [0.0, 0.5], [0.0, 0.1]) if any(weights)]


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
@pytest.mark.parametrize("separate_head", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_each_term_can_be_left_out(weights, separate_head, centering):
    method = made_method(*weights, separate_head=separate_head, centering=centering)
    output = method(made_batch(), 0.05)
    dino, ibot, koleo = weights
    on = {"dino_local": dino, "dino_global": dino, "ibot": ibot, "koleo": koleo}
    assert tuple(output.terms) == TERMS
    assert all(bool(output.terms[name] != 0) == bool(on[name]) for name in TERMS)
    output.loss.backward()
    gradients = [p.grad for p in method.student["backbone"].blocks.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    assert all(p.grad is None for p in method.teacher.parameters())
    # A head that no term uses is not there, so every parameter that is there is learned.
    heads = {"dino_head"} if dino or (ibot and not separate_head) else set()
    heads |= {"ibot_head"} if ibot and separate_head else set()
    assert set(method.subnetworks()) == {"backbone", *heads}
    if dino or ibot:
        assert all(p.grad is not None for head in heads for p in method.student[head].parameters())


@pytest.mark.parametrize("separate_head", [False, True])
def test_terms_add_up_to_the_loss_to_the_last_bit_and_carry_no_gradient(separate_head):
    loss, terms = made_method(0.7, 0.3, 0.21, separate_head=separate_head)(made_batch(), 0.05)
    assert torch.equal(loss, terms["dino_local"] + terms["dino_global"] + terms["ibot"] + terms["koleo"])
    assert loss.requires_grad
    assert not any(term.requires_grad for term in terms.values())


def test_a_term_is_its_weight_times_the_term_of_weight_one():
    batch = made_batch()
    one, other = made_method(1.0, 1.0, 1.0)(batch, 0.05).terms, made_method(0.5, 2.0, 0.1)(batch, 0.05).terms
    factors = {"dino_local": 0.5, "dino_global": 0.5, "ibot": 2.0, "koleo": 0.1}
    assert {name: term.item() for name, term in other.items()} == pytest.approx(
        {name: factors[name] * term.item() for name, term in one.items()}, rel=1e-6
    )


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
@pytest.mark.parametrize("separate_head", [False, True])
def test_losses_start_at_the_published_values(separate_head, centering):
    torch.manual_seed(0)
    config = DINOv2Config(
        dino=DINOConfig(prototypes=65536, hidden_dim=256, centering=centering),
        ibot=IBOTConfig(prototypes=65536, hidden_dim=256, separate_head=separate_head),
    )
    shape = {**SHAPE, "embed_dim": 384, "num_heads": 6, "depth": 4, "init_values": 1e-5}
    method = DINOv2(VisionTransformer(**shape), VisionTransformer(**shape), config)
    batch = made_batch(images=4, n_locals=8)
    if centering == "centering":  # the centre settles; Sinkhorn has nothing to settle
        method.dino_loss.momentum = method.ibot_patch_loss.momentum = 0.3
        for _ in range(6):
            method.targets(batch, 0.04)
    with torch.no_grad():
        terms = method(batch, 0.04).terms
    flat = math.log(65536)
    assert terms["dino_local"].item() == pytest.approx(16 / 18 * flat, rel=0.03)
    assert terms["dino_global"].item() == pytest.approx(2 / 18 * flat, rel=0.03)
    assert terms["ibot"].item() == pytest.approx(0.5 * flat, rel=0.03)
    # Above it by half the variance of the student's scaled logits: cosines in 256 dimensions over 0.1.
    spread = 0.5 * (1 / 16 / 0.1) ** 2
    assert terms["dino_local"].item() == pytest.approx(16 / 18 * (flat + spread), rel=0.005)
    # What users of the official code saw in their logs, which halve the iBOT term.
    logged = terms["dino_local"].item(), terms["dino_global"].item(), terms["ibot"].item() / 2
    assert logged == pytest.approx((10.03, 1.254, 2.811), rel=0.01)


@pytest.mark.parametrize("ibot", [0.0, 1.0])
@pytest.mark.parametrize("separate_head", [False, True])
@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
def test_a_batch_without_masks_or_local_crops(centering, separate_head, ibot):
    method = made_method(ibot=ibot, separate_head=separate_head, centering=centering)
    loss, terms = method(made_batch(n_locals=0, masks=MaskConfig(probability=0.0)), 0.05)
    loss.backward()
    assert terms["dino_local"] == terms["ibot"] == 0
    assert terms["dino_global"] > 0
    # All parameters take part, as processes that add up their gradients ask, also those that only masks move.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.student.parameters())


def test_local_crops_without_rows_may_have_any_shape():
    batch = dataclasses.replace(made_batch(), local_crops=torch.empty(0, 3, 0, 0))
    assert made_method()(batch, 0.05).terms["dino_local"] == 0


def test_one_image_leaves_koleo_out():
    loss, terms = made_method()(made_batch(images=1), 0.05)
    loss.backward()
    assert terms["koleo"] == 0
    assert loss.isfinite()
    assert terms["dino_global"] > 0


def test_only_masks_and_nothing_masked_learns_nothing():
    method = made_method(dino=0.0, koleo=0.0)
    loss = method(made_batch(masks=MaskConfig(probability=0.0)), 0.05).loss
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in method.student.parameters() if p.grad is not None)


def test_targets_are_of_whole_crops_and_of_the_patches_that_are_masked():
    method, batch = made_method(separate_head=True), made_batch()
    backbone, heads = method.teacher["backbone"], method.teacher
    features = backbone.forward_features(batch.global_crops)
    crops = torch.softmax(heads["dino_head"](features["x_norm_clstoken"]) / 0.05, dim=-1)
    patches = [features["x_norm_patchtokens"][row, patch] for row, patch in batch.masks.nonzero().tolist()]
    found = method.targets(batch, 0.05)
    assert torch.allclose(found.crops.flatten(0, 1), crops, atol=1e-6)
    wanted = torch.softmax(heads["ibot_head"](torch.stack(patches)) / 0.05, dim=-1)
    assert torch.allclose(found.patches, wanted, atol=1e-6)


def test_without_centering_targets_are_the_plain_softmax_for_ever_and_nothing_is_remembered():
    method, batch = made_method(centering="none"), made_batch()
    logits = method.teacher["dino_head"](method.teacher["backbone"](batch.global_crops))
    first, second = method.targets(batch, 1.0), method.targets(batch, 1.0)
    assert torch.allclose(first.crops.flatten(0, 1), logits.exp() / logits.exp().sum(dim=1, keepdim=True), atol=1e-6)
    assert torch.equal(first.crops, second.crops)
    assert {name.split(".")[0] for name in method.state_dict()} == {"student", "teacher"}


def test_probabilities_are_the_targets_of_centering_and_move_no_centre():
    method, batch = made_method(), made_batch()
    method(batch, 0.05)
    centre = method.dino_loss.center.clone()
    logits = method.teacher["dino_head"](method.teacher["backbone"](batch.global_crops))
    found = method.probabilities(logits, 0.05)
    assert torch.equal(method.dino_loss.center, centre)
    assert centre.abs().max() > 0
    assert torch.allclose(found, method.eval().targets(batch, 0.05).crops.flatten(0, 1), atol=1e-6)
    plain = made_method(centering="sinkhorn_knopp").probabilities(logits, 0.05)
    assert torch.allclose(plain, (logits / 0.05).softmax(dim=1))


def test_the_student_sees_masks_on_global_crops_only():
    method, batch = made_method(), made_batch()
    views = method.student_views(batch)
    with torch.no_grad():
        method.student["backbone"].mask_token.normal_()
    changed = method.student_views(batch)
    masked = batch.masks.any(dim=1).view(2, 3)
    moved = (views.global_logits - changed.global_logits).abs().amax(dim=-1) > 1e-6
    assert torch.equal(moved, masked)
    assert torch.equal(views.local_logits, changed.local_logits)


def test_a_packed_pass_is_the_separate_passes():
    method, batch = made_method(separate_head=True), made_batch(n_locals=5)
    backbone, heads = method.student["backbone"], method.student
    of_globals = backbone.forward_features(batch.global_crops, batch.masks)
    views = method.student_views(batch)
    for crop in range(5):
        rows = backbone(batch.local_crops[3 * crop : 3 * crop + 3])
        assert torch.allclose(views.local_logits[crop], heads["dino_head"](rows), atol=1e-5)
    assert torch.allclose(views.cls.flatten(0, 1), of_globals["x_norm_clstoken"], atol=1e-5)
    assert torch.allclose(
        views.patch_logits, heads["ibot_head"](of_globals["x_norm_patchtokens"][batch.masks]), atol=1e-5
    )


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
def test_order_of_images_does_not_matter(centering):
    batch, order = made_batch(images=4), torch.tensor([2, 0, 3, 1])

    def reordered(crops):
        return crops.unflatten(0, (-1, 4))[:, order].flatten(0, 1)

    masks = reordered(batch.masks)
    weights = (masks / masks.sum(dim=1, keepdim=True).clamp_min(1))[masks]
    other = dataclasses.replace(
        batch,
        global_crops=reordered(batch.global_crops),
        local_crops=reordered(batch.local_crops),
        masks=masks,
        mask_indices=masks.flatten().nonzero().flatten(),
        masks_weight=weights,
    )
    first, second = made_method(centering=centering)(batch, 0.05), made_method(centering=centering)(other, 0.05)
    for name in TERMS:
        assert first.terms[name].item() == pytest.approx(second.terms[name].item(), rel=1e-5)


def test_the_teacher_starts_as_the_student_and_follows_it():
    method = made_method(separate_head=True)
    student, teacher = method.student.state_dict(), method.teacher.state_dict()
    assert student.keys() == teacher.keys()
    assert all(torch.equal(student[name], teacher[name]) for name in student)
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
    before = {name: tensor.clone() for name, tensor in teacher.items()}
    method.update_teacher(0.75)
    assert all(torch.allclose(tensor, before[name] + 0.25) for name, tensor in method.teacher.state_dict().items())


def test_the_teacher_is_never_in_training_mode_and_never_random():
    method, batch = made_method(drop_path=0.5), made_batch()
    for mode in (True, False, True):
        method.train(mode)
        assert method.student.training is mode
        assert not any(module.training for module in method.teacher.modules())
    first = method.targets(batch, 0.05)
    method.dino_loss.center.zero_()
    method.ibot_patch_loss.center.zero_()
    second = method.targets(batch, 0.05)
    assert torch.equal(first.crops, second.crops)
    assert torch.equal(first.patches, second.patches)


def test_centres_move_after_use_in_training_only():
    method, batch = made_method(), made_batch()
    method.eval()
    first = method(batch, 0.05).loss
    assert torch.equal(method(batch, 0.05).loss, first)
    method.train()
    assert torch.equal(method(batch, 0.05).loss, first)
    assert not torch.equal(method(batch, 0.05).loss, first)
    cls = method.teacher["backbone"](batch.global_crops)
    mean = method.teacher["dino_head"](cls).mean(dim=0)
    assert torch.allclose(method.dino_loss.center[0], 0.19 * mean, atol=1e-6)


def test_names_in_the_state_dict_are_the_official_ones():
    names = set(made_method(separate_head=True).state_dict())
    assert {"student.backbone.cls_token", "teacher.ibot_head.last_layer.weight_g"} <= names
    rest = {name for name in names if not name.startswith(("student.", "teacher."))}
    assert rest == {"dino_loss.center", "ibot_patch_loss.center"}
    state = made_method(separate_head=True).state_dict()
    assert state["dino_loss.center"].shape == (1, 24)
    assert state["ibot_patch_loss.center"].shape == (1, 1, 20)


def test_half_precision_networks_give_float32_losses():
    batch = made_batch()
    full = made_method()(batch, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = made_method()(batch, 0.05)
    assert half.loss.dtype == torch.float32
    for name in TERMS:
        assert half.terms[name].dtype == torch.float32
        assert half.terms[name].item() == pytest.approx(full.terms[name].item(), rel=0.05, abs=0.02)


def test_backbones_of_different_shape_are_refused():
    with pytest.raises(ModelError, match="student and teacher differ in shape"):
        DINOv2(VisionTransformer(**SHAPE), VisionTransformer(**{**SHAPE, "depth": 3}))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("separate_head", [False, True])
@pytest.mark.parametrize("n_locals", [0, 2])
def test_in_blocks_of_prototypes_the_loss_and_its_gradients_are_the_same(n_locals, separate_head, weights, monkeypatch):
    monkeypatch.setattr(dinov2, "IN_BLOCKS_FROM", 1)
    calls, apply = [], _chunked._ChunkedCrossEntropy.apply
    monkeypatch.setattr(_chunked._ChunkedCrossEntropy, "apply", lambda *args: calls.append(1) or apply(*args))
    batch, losses, gradients = made_batch(n_locals=n_locals), [], []
    for in_blocks in (True, False):
        method = made_method(*weights, separate_head=separate_head)
        method.config = dataclasses.replace(
            method.config, dino=dataclasses.replace(method.config.dino, in_blocks=in_blocks)
        )
        views = method.student_views(batch)
        said = views.patch_logits if views.global_logits is None else views.global_logits
        assert isinstance(said, Unprojected) == in_blocks
        calls.clear()
        output = method(batch, 0.05)
        assert len(calls) == in_blocks * (2 if separate_head and all(weights) else 1)  # once for each last layer
        output.loss.backward()
        losses.append(torch.stack([output.loss.detach(), *output.terms.values()]))
        gradients.append({name: p.grad for name, p in method.student.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize(("separate_head", "n_locals", "drop_path"), [(False, 2, 0.4), (True, 0, 0.4), (True, 2, 0.0)])
def test_with_needed_tokens_alone_losses_and_gradients_are_the_same(separate_head, n_locals, drop_path, weights):
    batch, losses, gradients = made_batch(n_locals=n_locals), [], []
    for needed in (True, False):
        method = made_method(*weights, separate_head=separate_head, drop_path=drop_path)
        dino = dataclasses.replace(method.config.dino, needed_tokens=needed)
        method.config = dataclasses.replace(method.config, dino=dino)
        rows = []
        for network in (method.teacher, method.student):
            network["backbone"].blocks[-1].mlp.register_forward_hook(
                lambda _, given, __, rows=rows: rows.append(given[0][..., 0].numel())
            )
        torch.manual_seed(0)
        output = method(batch, 0.05)
        output.loss.backward()
        assert len(rows) == 2
        patches = len(batch.mask_indices) if weights[1] else 0
        n_local = 3 * n_locals if weights[0] else 0
        least, most = [6 + patches, 6 + patches + n_local], [6 * 17, (6 * 17 + n_local * 5)]
        if not needed and drop_path:  # 3 of 6 images, and of 6 small ones
            most[1] = 3 * 17 + (3 * 5 if n_local else 0)
        assert rows == (least if needed else most)
        losses.append(torch.stack([output.loss.detach(), *output.terms.values()]))
        gradients.append({name: p.grad for name, p in method.student.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def learned(method, batch, parts=1):
    """Terms of three steps of plain descent; gradients and centres of the first, by name."""
    terms, first = [], {}
    for _ in range(3):
        method.zero_grad()
        for output in method.passes(batch, 0.05, parts):
            output.loss.backward()
            terms.append(torch.stack(list(output.terms.values())))
        gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        first = first or gradients | {name: b.clone() for name, b in method.named_buffers()}
        with torch.no_grad():
            for parameter in method.student.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
        method.update_teacher(0.9)
    return torch.stack(terms), first


@pytest.mark.parametrize(
    ("parts", "share", "in_blocks"), [(1, 0.5, False), (2, 0.5, True), (1, 0.0, False), (1, 0.5, True)]
)
@pytest.mark.parametrize("separate_head", [False, True])
@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp", "none"])
def test_padding_changes_nothing(centering, separate_head, in_blocks, parts, share, monkeypatch):
    """Terms, gradients and centres with masked patches filled up to a bound, also where there are none at all."""
    monkeypatch.setattr(dinov2, "IN_BLOCKS_FROM", 1 if in_blocks else 2**30)
    batch = made_batch(images=4, masks=MaskConfig(probability=share))
    # As of a process that holds a part of the step: there is room for more than its masks take.
    padded = batch.pad(24, MaskConfig())
    assert len(padded.mask_indices) > len(batch.mask_indices)
    found, wanted = (
        learned(made_method(koleo=0.0, separate_head=separate_head, centering=centering), one, parts)
        for one in (padded, batch)
    )
    torch.testing.assert_close(found[0], wanted[0], atol=1e-6, rtol=1e-6)
    # A head that only padding went through has zeros where it had no gradient.
    assert {name for name, value in found[1].items() if value.any()} == {n for n, v in wanted[1].items() if v.any()}
    for name, value in wanted[1].items():
        # Entries are sums that nearly cancel: an untrained bottleneck is short, and what is divided by it large.
        off = (found[1][name] - value).norm() / value.norm().clamp_min(1e-3)
        assert off < 3e-6, (name, float(off))
