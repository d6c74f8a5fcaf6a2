# SPDX-License-Identifier: Apache-2.0
"""timm's `vit_*_patch14_dinov2` and `vit_*_patch14_reg4_dinov2` weights.

timm adds the position of CLS to the CLS token of its register models and keeps positions of patches alone; their sum
is what a model uses, so features do not change, but the two summands cannot be told apart again. Neither kind has a
mask token.

Source: timm 1.0.31, `models/vision_transformer.py`, _convert_dinov2. Read next: `_timm_config.py`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from opendino.checkpoint.convert import _table
from opendino.checkpoint.convert._table import Converted, Table, some
from opendino.errors import ConversionError

KEYS: Table = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "register_tokens": "reg_token",
    "patch_embed.proj.{p}": "patch_embed.proj.{p}",
    "blocks.{n}.norm1.{p}": "blocks.{n}.norm1.{p}",
    "blocks.{n}.attn.qkv.{p}": "blocks.{n}.attn.qkv.{p}",
    "blocks.{n}.attn.proj.{p}": "blocks.{n}.attn.proj.{p}",
    "blocks.{n}.ls1.gamma": "blocks.{n}.ls1.gamma",
    "blocks.{n}.norm2.{p}": "blocks.{n}.norm2.{p}",
    "blocks.{n}.mlp.fc1.{p}": "blocks.{n}.mlp.fc1.{p}",
    "blocks.{n}.mlp.fc2.{p}": "blocks.{n}.mlp.fc2.{p}",
    "blocks.{n}.ls2.gamma": "blocks.{n}.ls2.gamma",
    "norm.{p}": "norm.{p}",
}
"""Official name -> timm's name, for the plain feed-forward layer."""
KEYS_GATED: Table = {
    **{official: other for official, other in KEYS.items() if ".mlp." not in official},
    # timm's SwiGLUPacked: the gate is the first half, as in the official layer.
    "blocks.{n}.mlp.w12.{p}": "blocks.{n}.mlp.fc1.{p}",
    "blocks.{n}.mlp.w3.{p}": "blocks.{n}.mlp.fc2.{p}",
}
"""Official name -> timm's name, for the gated feed-forward layer of ViT-g."""

_HEAD = ("linear_head.weight", "linear_head.bias")
_TIMM_HEAD = ("head.weight", "head.bias")


def to_official(state: Mapping[str, Tensor], where: str = "timm weights") -> Converted:
    """Names of timm to official ones.

    Returns:
        Filled: a mask token of zeros, as training starts from. Dropped: timm's classifier, which reads CLS alone, as
        no official head does.

    Raises:
        ConversionError: a name that these models do not have.
    """
    dropped = tuple(name for name in _TIMM_HEAD if name in state)
    body = {name: tensor for name, tensor in state.items() if name not in _TIMM_HEAD}
    official = _table.to_official(where, body, KEYS_GATED if _is_gated(body) else KEYS)
    if "register_tokens" in official and "pos_embed" in official:
        table = official["pos_embed"]
        official["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    if "cls_token" not in official:
        raise ConversionError(f"{where}: missing cls_token; these are not the weights of a timm DINOv2 model")
    official["mask_token"] = torch.zeros_like(official["cls_token"][0])
    return Converted(official, dropped, ("mask_token",))


def from_official(state: Mapping[str, Tensor], where: str = "weights") -> Converted:
    """Official names to timm's.

    Returns:
        Dropped: the mask token, and a `linear_head` (timm's heads read CLS alone, or the mean alone).

    Raises:
        ConversionError: a part that timm has no place for, such as an `identity` feed-forward layer.
    """
    dropped = tuple(name for name in ("mask_token", *_HEAD) if name in state)
    body = {name: tensor for name, tensor in state.items() if name not in dropped}
    gated = "blocks.0.mlp.w12.weight" in body
    last = "blocks.0.mlp.w3.bias" if gated else "blocks.0.mlp.fc2.bias"
    lacking = [name for name in ("cls_token", "pos_embed", last) if name not in body]
    if lacking:
        raise ConversionError(
            f"{where}: missing {some(lacking)}, which timm's models cannot do without; "
            "convert to official, which holds any backbone"
        )
    if "register_tokens" in body:
        cls_position, body["pos_embed"] = body["pos_embed"][:, :1], body["pos_embed"][:, 1:]
        if cls_position.any():  # adding zeros would turn -0.0 into 0.0
            body["cls_token"] = body["cls_token"] + cls_position
    return Converted(_table.from_official(where, body, KEYS_GATED if gated else KEYS), dropped)


def _is_gated(body: Mapping[str, Tensor]) -> bool:
    """Whether the first layer makes twice what the second takes."""
    first, second = body.get("blocks.0.mlp.fc1.weight"), body.get("blocks.0.mlp.fc2.weight")
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]
