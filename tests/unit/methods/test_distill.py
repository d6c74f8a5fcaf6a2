# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses

import pytest
import torch
from torch import nn

from opendino.data.collate import PretrainBatch
from opendino.data.masking import MaskConfig
from opendino.errors import ModelError
from opendino.layers.dino_head import DINOHead
from opendino.losses.distill import feature_loss
from opendino.losses.koleo import koleo_loss
from opendino.losses.sinkhorn import sinkhorn_knopp
from opendino.methods.distill import TERMS, Distill, FeatureDistill, Together, all_patches
from opendino.methods.guide import Guide, on_grid
from opendino.methods.settings import DINOConfig, DINOv2Config, IBOTConfig, KoLeoConfig
from opendino.models.vision_transformer import VisionTransformer

STUDENT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 1, "init_values": 0.5}
TEACHER = {**STUDENT, "embed_dim": 32, "depth": 2, "num_heads": 2}
HEAD = {"prototypes": 24, "hidden_dim": 16, "bottleneck_dim": 8, "nlayers": 2}


def made_guide(separate=False, heads=True, prototypes=24, centers=None, **shape):
    torch.manual_seed(5)
    network = nn.ModuleDict({"backbone": VisionTransformer(**{**TEACHER, **shape})})
    if heads:
        network["dino_head"] = DINOHead(32, prototypes, 20, 12, 3)
    if heads and separate:
        network["ibot_head"] = DINOHead(32, 20, 20, 12, 3)
    return Guide(network, centers)


def made_config(dino=1.0, ibot=1.0, koleo=0.1, separate=False, centering="sinkhorn_knopp", prototypes=24):
    return DINOv2Config(
        dino=DINOConfig(loss_weight=dino, centering=centering, **{**HEAD, "prototypes": prototypes}),
        ibot=IBOTConfig(loss_weight=ibot, separate_head=separate, **{**HEAD, "prototypes": 20}),
        koleo=KoLeoConfig(loss_weight=koleo),
    )


def pair(**shape):
    torch.manual_seed(0)
    student = VisionTransformer(**{**STUDENT, **shape})
    return student, VisionTransformer(**{**STUDENT, **shape})


def made_batch(images=3, n_locals=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # Masks that a method which reads them would go wrong by.
    masks = torch.zeros(2 * images, 16, dtype=torch.bool)
    masks[:, :3] = True
    return PretrainBatch(
        global_crops=torch.randn(2 * images, 3, 16, 16, generator=generator),
        local_crops=torch.randn(n_locals * images, 3, 8, 8, generator=generator),
        masks=masks,
        mask_indices=masks.flatten().nonzero().flatten(),
        masks_weight=torch.full((6 * images,), 1 / 3),
        images=images,
        ids=torch.arange(images),
    )


def cross_entropy(logits, targets):
    return -(targets * torch.log_softmax(logits / 0.1, -1)).sum(-1)


def test_the_loss_is_that_of_dinov2_with_nothing_masked_and_the_guides_targets():
    guide, batch = made_guide(), made_batch()
    method = Distill(*pair(), guide, made_config())
    output = method(batch, 0.05)
    said = guide.backbone.forward_features(batch.global_crops)
    head, student = guide.network["dino_head"], method.student
    crops = sinkhorn_knopp(head(said["x_norm_clstoken"]), 0.05)
    patches = sinkhorn_knopp(head(said["x_norm_patchtokens"].flatten(0, 1)), 0.05)
    ours = student["backbone"].forward_features(batch.global_crops)
    of_locals = student["dino_head"](student["backbone"].forward_features(batch.local_crops)["x_norm_clstoken"])
    of_globals = student["dino_head"](ours["x_norm_clstoken"])
    swapped = torch.cat([crops[3:], crops[:3]])
    local = sum(
        cross_entropy(of_locals[3 * i : 3 * i + 3], crops[3 * j : 3 * j + 3]).mean() for i in (0, 1) for j in (0, 1)
    )
    wanted = {
        "dino_global": cross_entropy(of_globals, swapped).mean() * 2 / 6,
        "dino_local": local / 6,
        # Every patch of every crop, each crop with weight one: the mean over all.
        "ibot": cross_entropy(student["dino_head"](ours["x_norm_patchtokens"].flatten(0, 1)), patches).mean(),
        "koleo": 0.1 * sum(koleo_loss(part) for part in ours["x_norm_clstoken"].split(3)),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(output.terms[name], value.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss.detach(), sum(wanted.values()).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["cosine", "smooth_l1", "mixed"])
def test_features_are_compared_view_by_view(kind):
    guide, batch = made_guide(heads=False), made_batch()
    method = FeatureDistill(*pair(), guide, made_config(dino=0.5, ibot=0.25, koleo=0.0), kind)
    output = method(batch, 0.05)
    said, student = guide.say(batch.global_crops), method.student
    ours = student["backbone"].forward_features(batch.global_crops)
    projected = student["cls_projector"](ours["x_norm_clstoken"])
    of_locals = student["cls_projector"](student["backbone"].forward_features(batch.local_crops)["x_norm_clstoken"])
    same = [feature_loss(projected[i : i + 3], said.cls[i : i + 3], kind).mean() for i in (0, 3)]
    crossed = [feature_loss(of_locals[i : i + 3], said.cls[j : j + 3], kind).mean() for i in (0, 3) for j in (0, 3)]
    patches = student["patch_projector"](ours["x_norm_patchtokens"])
    wanted = {
        "dino_global": 0.5 * sum(same) / 6,
        "dino_local": 0.5 * sum(crossed) / 6,
        "ibot": 0.25 * feature_loss(patches, said.patches.flatten(1, 2), kind).mean(),
        "koleo": torch.zeros(()),
    }
    assert tuple(output.terms) == TERMS
    for name, value in wanted.items():
        torch.testing.assert_close(output.terms[name], value.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss.detach(), sum(output.terms.values()), rtol=1e-6, atol=1e-6)


def made(which, **config):
    if which == "heads":
        return Distill(*pair(), made_guide(separate=config.get("separate", False)), made_config(**config))
    if which == "features":
        return FeatureDistill(*pair(), made_guide(heads=False), made_config(**config), "mixed", 1)
    guide = made_guide()
    first = Distill(*pair(), guide, made_config(**config))
    return Together(first, {"wide": Distill(*pair(embed_dim=24, patch_size=8), guide, made_config(**config))})


@pytest.mark.parametrize("which", ["heads", "features", "together"])
def test_the_guide_does_not_move_and_the_teacher_is_the_average_of_the_student(which):
    method, batch = made(which), made_batch()
    before = copy.deepcopy(method.guide.state_dict())
    started = copy.deepcopy(method.teacher.state_dict())
    optimizer = torch.optim.SGD([p for p in method.student.parameters() if p.requires_grad], lr=0.1)
    method(batch, 0.05).loss.backward()
    for name, network in method.subnetworks().items():
        unused = [n for n, p in network.named_parameters() if p.grad is None and n != "mask_token"]
        assert not unused, name
        assert max(p.grad.abs().max() for p in network.parameters() if p.grad is not None) > 0, name
    assert all(p.grad is None for p in method.teacher.parameters())
    optimizer.step()
    method.update_teacher(0.75)
    assert all(torch.equal(value, before[name]) for name, value in method.guide.state_dict().items())
    for name, value in method.teacher.state_dict().items():
        wanted = 0.75 * started[name] + 0.25 * method.student.state_dict()[name]
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    assert not any("guide" in name or "network" in name for name in method.state_dict())


def test_several_students_learn_what_each_would_alone():
    both, batch = made("together"), made_batch()
    output = both(batch, 0.05)
    guide = made_guide()
    alone = [Distill(*pair(**shape), guide, made_config()) for shape in ({}, {"embed_dim": 24, "patch_size": 8})]
    outputs = [method(batch, 0.05) for method in alone]
    torch.testing.assert_close(output.loss, outputs[0].loss + outputs[1].loss)
    assert list(output.terms) == [*TERMS, *(f"also_wide_{name}" for name in TERMS)]
    output.loss.backward()
    outputs[1].loss.backward()
    for (name, ours), theirs in zip(
        both.student["also_wide"].named_parameters(), alone[1].student.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    assert list(both.subnetworks()) == ["backbone", "dino_head", "also_wide_backbone", "also_wide_dino_head"]
    results = both.results()
    assert list(results) == ["", "wide"]
    assert results["wide"] is both.teacher["also_wide"]["backbone"]


def test_the_centres_of_all_students_are_in_the_state():
    guide = made_guide(separate=True)
    config = made_config(separate=True, centering="centering")
    both = Together(Distill(*pair(), guide, config), {"b": Distill(*pair(), guide, config)})
    both(made_batch(), 0.05)
    centres = {name: value for name, value in both.state_dict().items() if "center" in name}
    assert set(centres) == {
        "dino_loss.center", "ibot_patch_loss.center", "also_b_dino_loss.center", "also_b_ibot_patch_loss.center",
    }  # fmt: skip
    assert all(value.abs().sum() > 0 for value in centres.values())
    logits = torch.randn(5, 24)
    wanted = torch.softmax((logits - both.dino_loss.center) / 0.05, dim=-1)
    torch.testing.assert_close(both.probabilities(logits, 0.05), wanted)  # looks at a run are at the first


def test_the_running_centre_begins_where_the_guides_run_left_it():
    center = torch.randn(1, 24)
    guide = made_guide(centers={"dino_loss.center": center, "ibot_patch_loss.center": torch.zeros(1, 1, 7)})
    method = Distill(*pair(), guide, made_config(centering="centering"))
    assert torch.equal(method.dino_loss.center, center)
    assert not method.ibot_patch_loss.center.any()


@pytest.mark.parametrize("which", ["heads", "together", "features"])
def test_passes_in_parts_come_to_the_loss_and_the_gradients_of_the_whole(which):
    """Sinkhorn-Knopp evens out the whole batch, and KoLeo looks for neighbours in all of it, whatever the parts."""
    whole, batch = made(which, koleo=0.1), made_batch(images=4)
    parts = copy.deepcopy(whole)
    output = whole(batch, 0.05)
    output.loss.backward()
    outputs = []
    for found in parts.passes(batch, 0.05, 2):
        found.loss.backward()
        outputs.append(found)
    assert sum(found.loss.item() for found in outputs) == pytest.approx(output.loss.item(), rel=1e-5)
    for name, term in output.terms.items():
        assert sum(found.terms[name].item() for found in outputs) == pytest.approx(term.item(), rel=1e-4, abs=1e-6)
    pairs = zip(whole.student.named_parameters(), parts.student.parameters(), strict=True)
    for (name, one), other in pairs:
        if one.grad is not None and name.rpartition(".")[2] != "mask_token":
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.1), (0.5, 2.0, 0.0)])
@pytest.mark.parametrize("which", ["heads", "features"])
def test_each_term_can_be_left_out(which, weights):
    method = made(which, **dict(zip(("dino", "ibot", "koleo"), weights, strict=True)), separate=which == "heads")
    output = method(made_batch(n_locals=0), 0.05)
    dino, ibot, koleo = weights
    on = {"dino_local": 0, "dino_global": dino, "ibot": ibot, "koleo": koleo}
    assert {name: bool(value != 0) for name, value in output.terms.items()} == {k: bool(v) for k, v in on.items()}
    output.loss.backward()
    named = [item for network in method.subnetworks().values() for item in network.named_parameters()]
    assert all(parameter.grad is not None for name, parameter in named if name != "mask_token")


def test_a_guide_with_other_patches_is_heard_on_the_students_grid():
    guide, batch = made_guide(patch_size=8), made_batch()
    method = Distill(*pair(), guide, made_config(dino=0.0, koleo=0.0))
    said = guide.say(batch.global_crops)
    wanted = sinkhorn_knopp(guide.network["dino_head"](on_grid(said.patches, (4, 4)).flatten(0, 1)), 0.05)
    torch.testing.assert_close(method.targets(batch, 0.05).patches, wanted)
    assert method(batch, 0.05).loss.isfinite()


def test_all_patches_count_once_for_each_crop():
    batch = all_patches(nn.ModuleDict({"backbone": pair()[0]}), made_batch())
    assert not batch.masks.any()
    assert batch.mask_indices.tolist() == list(range(6 * 16))
    assert batch.masks_weight.view(6, 16).sum(dim=1).tolist() == pytest.approx([1.0] * 6)
    again = all_patches(nn.ModuleDict({"backbone": pair()[0]}), batch)
    assert all(torch.equal(getattr(batch, f.name), getattr(again, f.name)) for f in dataclasses.fields(batch)[2:5])


def test_what_does_not_fit_is_said():
    with pytest.raises(ModelError, match=r"no dino_head, which the dino term.*distill\.targets=features"):
        Distill(*pair(), made_guide(heads=False), made_config())
    with pytest.raises(ModelError, match="no ibot_head, which the ibot term"):
        Distill(*pair(), made_guide(), made_config(separate=True))
    with pytest.raises(ModelError, match=r"has 32 prototypes and the student's 24; set dino\.prototypes=32"):
        Distill(*pair(), made_guide(prototypes=32), made_config())
    with pytest.raises(ModelError, match="no feature is compared"):
        FeatureDistill(*pair(), made_guide(heads=False), made_config(dino=0.0, ibot=0.0))


@pytest.mark.parametrize("parts", [1, 2])
def test_padding_of_masks_that_are_not_read_changes_nothing(parts):
    batch, losses = made_batch(images=2), []
    for one in (batch, batch.pad(12, MaskConfig(ratio=(0.5, 1.0)))):
        method = Distill(*pair(), made_guide(), made_config())
        losses.append(sum(float(output.loss.detach()) for output in method.passes(one, 0.05, parts)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)
