# SPDX-License-Identifier: Apache-2.0
"""Which parameters learn how fast and which decay, by their names; read `adamw.py` next.

The rules look at official parameter names, wherever they stand in a module: `blocks.3.mlp.fc1.weight` and
`student.backbone.blocks.3.mlp.fc1.weight` mean the same.
"""

import re
from typing import Any

from torch import nn
from torch.optim import Optimizer

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_INPUT = re.compile(r"(?:^|\.)(?:pos_embed|patch_embed|cls_token|mask_token|register_tokens)(?:\.|$)")
_NOT_DECAYED = ("norm", "gamma")


def param_groups(
    module: nn.Module, *, layerwise_decay: float = 0.9, patch_embed_lr_mult: float = 0.2
) -> list[dict[str, Any]]:
    """Trainable parameters grouped by multipliers, ready for a torch optimizer.

    Args:
        module: a backbone, a head, or a student that holds them.
        layerwise_decay: factor on the learning rate from one block to the block before it; 1 for none.
        patch_embed_lr_mult: further factor on the learning rate of the patch embedding.

    Returns:
        One dict for each combination that occurs: `params` (pairs of name and parameter), `lr_multiplier`,
        `wd_multiplier`, `is_last_layer`. In order of first appearance; 52 for a ViT-L backbone at 0.9.

    Source: official `utils/param_groups.py`.
    Differs: equal combinations of different sub-networks share a group.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    depth = max((int(found[1]) + 1 for name, _ in named if (found := _BLOCK.search(name))), default=0)
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in named:
        lr = lr_multiplier(name, depth, layerwise_decay=layerwise_decay, patch_embed_lr_mult=patch_embed_lr_mult)
        decay, is_last_layer = wd_multiplier(name), "last_layer" in name
        group = groups.setdefault(
            (lr, decay, is_last_layer),
            {"params": [], "lr_multiplier": lr, "wd_multiplier": decay, "is_last_layer": is_last_layer},
        )
        group["params"].append((name, parameter))
    return list(groups.values())


def lr_multiplier(name: str, depth: int, *, layerwise_decay: float, patch_embed_lr_mult: float) -> float:
    """Factor on the learning rate of one parameter.

    Counted from the top: the final norm and the heads have 1, the last block `layerwise_decay`, the block before it
    its square, and so on down to the tokens, the position table and the patch embedding below the first block.

    Args:
        name: official parameter name, with any prefix.
        depth: number of blocks.
        layerwise_decay: factor for each layer.
        patch_embed_lr_mult: further factor for the patch embedding.
    """
    block = _BLOCK.search(name)
    if block:
        return layerwise_decay ** (depth - int(block[1]))
    if not _INPUT.search(name):
        return 1.0
    multiplier = layerwise_decay ** (depth + 1)
    return multiplier * patch_embed_lr_mult if "patch_embed" in name else multiplier


def wd_multiplier(name: str) -> float:
    """Factor on the weight decay of one parameter: 0 for biases, norms and LayerScale's gammas, 1 for all others.

    Tokens, the position table and both parts of the head's last layer do decay, as published.
    """
    return 0.0 if name.endswith("bias") or any(part in name for part in _NOT_DECAYED) else 1.0


def set_schedule(optimizer: Optimizer, lr: float, weight_decay: float, last_layer_lr: float) -> None:
    """Write this step's learning rates and weight decays into the groups of an optimizer.

    Args:
        optimizer: built on `param_groups`.
        lr: learning rate before multipliers.
        weight_decay: weight decay before multipliers.
        last_layer_lr: learning rate of the heads' last layers, 0 while they are frozen.
    """
    for group in optimizer.param_groups:
        group["lr"] = (last_layer_lr if group["is_last_layer"] else lr) * group["lr_multiplier"]
        group["weight_decay"] = weight_decay * group["wd_multiplier"]
