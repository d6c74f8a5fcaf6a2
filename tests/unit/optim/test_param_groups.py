# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from opendino.layers.dino_head import DINOHead
from opendino.models.presets import create
from opendino.optim.param_groups import lr_multiplier, param_groups, set_schedule, wd_multiplier

# Measured on the published code: ViT-L/16, decay 0.9.
PUBLISHED = {
    "cls_token": 0.0717898,
    "pos_embed": 0.0717898,
    "mask_token": 0.0717898,
    "patch_embed.proj.weight": 0.01435796,
    "patch_embed.proj.bias": 0.01435796,
    "blocks.0.attn.qkv.weight": 0.0797664,
    "blocks.23.ls2.gamma": 0.9,
    "norm.weight": 1.0,
}


@pytest.fixture(scope="module")
def vit_large():
    with torch.device("meta"):
        return create("vitl16")


def multipliers(groups):
    return {name: (group["lr_multiplier"], group["wd_multiplier"]) for group in groups for name, _ in group["params"]}


def test_published_multipliers_and_number_of_groups(vit_large):
    groups = param_groups(vit_large, layerwise_decay=0.9, patch_embed_lr_mult=0.2)
    assert len(groups) == 52
    found = multipliers(groups)
    assert {name: found[name][0] for name in PUBLISHED} == pytest.approx(PUBLISHED, rel=2e-6)


def test_without_layerwise_decay_only_the_patch_embedding_differs(vit_large):
    found = multipliers(param_groups(vit_large, layerwise_decay=1.0))
    assert {name for name, (lr, _) in found.items() if lr != 1} == {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_every_parameter_is_in_one_group(vit_large):
    student = nn.ModuleDict({"backbone": vit_large, "dino_head": DINOHead(1024, 8), "ibot_head": DINOHead(1024, 8)})
    names = [name for group in param_groups(student) for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in student.named_parameters())


def test_decay_is_by_name_not_by_shape(vit_large):
    student = nn.ModuleDict({"backbone": vit_large, "dino_head": DINOHead(1024, 8)})
    decayed = {name for name, (_, decay) in multipliers(param_groups(student)).items() if decay}
    assert {"backbone.cls_token", "backbone.mask_token", "backbone.pos_embed"} <= decayed
    assert {"dino_head.last_layer.weight_g", "dino_head.last_layer.weight_v"} <= decayed
    assert {name.rpartition(".")[2] for name in decayed} <= {
        "weight",
        "weight_g",
        "weight_v",
        "cls_token",
        "mask_token",
        "pos_embed",
    }
    assert not any("norm" in name or "gamma" in name for name in decayed)
    assert wd_multiplier("blocks.1.norm1.weight") == wd_multiplier("blocks.1.attn.qkv.bias") == 0


def test_a_prefix_changes_nothing():
    names = ["pos_embed", "register_tokens", "patch_embed.proj.bias", "blocks.3.mlp.w12.weight", "norm.bias"]
    for name in names:
        for prefix in ("backbone.", "student.backbone."):
            rules = {"layerwise_decay": 0.8, "patch_embed_lr_mult": 0.2}
            assert lr_multiplier(prefix + name, 6, **rules) == lr_multiplier(name, 6, **rules)


def test_heads_learn_at_the_full_rate_and_know_their_last_layer():
    student = nn.ModuleDict({"backbone": create("vit_nano4"), "dino_head": DINOHead(128, 8, hidden_dim=4)})
    last = [group for group in param_groups(student) if group["is_last_layer"]]
    assert [[name for name, _ in group["params"]] for group in last] == [
        ["dino_head.last_layer.weight_g", "dino_head.last_layer.weight_v"]
    ]
    found = multipliers(param_groups(student))
    assert all(lr == 1 for name, (lr, _) in found.items() if name.startswith("dino_head."))


def test_frozen_parameters_are_left_out():
    head = DINOHead(4, 8, hidden_dim=4)
    head.mlp.requires_grad_(False)
    assert {name for group in param_groups(head) for name, _ in group["params"]} == {
        "last_layer.weight_g",
        "last_layer.weight_v",
    }


def test_set_schedule_multiplies_and_freezes_the_last_layer():
    student = nn.ModuleDict({"backbone": create("vit_nano4"), "dino_head": DINOHead(128, 8, hidden_dim=4)})
    optimizer = torch.optim.AdamW(param_groups(student, layerwise_decay=0.9))
    set_schedule(optimizer, lr=2.0, weight_decay=0.3, last_layer_lr=0.0)
    rates = {
        name: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for name in group["param_names"]
    }
    assert rates["backbone.blocks.5.mlp.fc1.weight"] == pytest.approx((1.8, 0.3))
    assert rates["backbone.blocks.4.mlp.fc1.bias"] == pytest.approx((1.62, 0.0))
    assert rates["backbone.patch_embed.proj.weight"] == pytest.approx((2 * 0.9**7 * 0.2, 0.3))
    assert rates["dino_head.mlp.0.weight"] == (2.0, 0.3)
    assert rates["dino_head.last_layer.weight_v"] == (0.0, 0.3)
