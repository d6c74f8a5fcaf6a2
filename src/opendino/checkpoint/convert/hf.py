# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers' `Dinov2*` and `Dinov2WithRegisters*` weights.

Files on the hub, and those that transformers writes, have the hub's layout (`KEYS`). transformers 5.23 holds other
names in memory (`KEYS_IN_MEMORY`), which a bare `state_dict()` shows. Read next: `_hf_config.py`, the files beside.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from opendino.checkpoint.convert import _table
from opendino.checkpoint.convert._table import Converted, Table, some
from opendino.errors import ConversionError

_OUTSIDE: Table = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj.{p}": "embeddings.patch_embeddings.projection.{p}",
    "norm.{p}": "layernorm.{p}",
}
_ALIKE: Table = {
    "blocks.{n}.norm1.{p}": "encoder.layer.{n}.norm1.{p}",
    "blocks.{n}.ls1.gamma": "encoder.layer.{n}.layer_scale1.lambda1",
    "blocks.{n}.norm2.{p}": "encoder.layer.{n}.norm2.{p}",
    "blocks.{n}.mlp.fc1.{p}": "encoder.layer.{n}.mlp.fc1.{p}",
    "blocks.{n}.mlp.fc2.{p}": "encoder.layer.{n}.mlp.fc2.{p}",
    "blocks.{n}.ls2.gamma": "encoder.layer.{n}.layer_scale2.lambda1",
}
KEYS: Table = {
    **_OUTSIDE,
    **_ALIKE,
    "blocks.{n}.attn.qkv.{p}": (
        "encoder.layer.{n}.attention.attention.query.{p}",
        "encoder.layer.{n}.attention.attention.key.{p}",
        "encoder.layer.{n}.attention.attention.value.{p}",
    ),
    "blocks.{n}.attn.proj.{p}": "encoder.layer.{n}.attention.output.dense.{p}",
    "blocks.{n}.mlp.w12.{p}": "encoder.layer.{n}.mlp.weights_in.{p}",
    "blocks.{n}.mlp.w3.{p}": "encoder.layer.{n}.mlp.weights_out.{p}",
}
"""Official name -> name in files on the hub."""
KEYS_IN_MEMORY: Table = {
    **_OUTSIDE,
    **_ALIKE,
    "blocks.{n}.attn.qkv.{p}": (
        "encoder.layer.{n}.attention.q_proj.{p}",
        "encoder.layer.{n}.attention.k_proj.{p}",
        "encoder.layer.{n}.attention.v_proj.{p}",
    ),
    "blocks.{n}.attn.proj.{p}": "encoder.layer.{n}.attention.o_proj.{p}",
    # The gate comes first, as in the official fused layer.
    "blocks.{n}.mlp.w12.{p}": ("encoder.layer.{n}.mlp.gate_proj.{p}", "encoder.layer.{n}.mlp.up_proj.{p}"),
    "blocks.{n}.mlp.w3.{p}": "encoder.layer.{n}.mlp.down_proj.{p}",
}
"""Official name -> name inside a model of transformers 5.23."""

_PREFIXES = ("dinov2.", "dinov2_with_registers.")
_HEAD = {"linear_head.weight": "classifier.weight", "linear_head.bias": "classifier.bias"}


def to_official(state: Mapping[str, Tensor], where: str = "hf weights") -> Converted:
    """Names of transformers, of either layout, with or without a classifier, to official ones.

    A classifier becomes `linear_head.*`. A model without a mask token (`use_mask_token=False`) gets one of zeros.

    Raises:
        ConversionError: a name that neither layout has, or parts of a tensor are missing.
    """
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in state)), "")
    head = {official: state[name] for official, name in _HEAD.items() if name in state}
    outside = [name for name in state if not name.startswith(prefix) and name not in _HEAD.values()]
    if outside:
        raise ConversionError(f"{where}: unexpected {some(outside)} beside '{prefix}' and the classifier")
    body = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name not in _HEAD.values()}
    in_memory = any(".q_proj." in name for name in body)
    official = _table.to_official(where, body, KEYS_IN_MEMORY if in_memory else KEYS)
    filled = ()
    if "mask_token" not in official and "cls_token" in official:
        official["mask_token"] = torch.zeros_like(official["cls_token"][0])
        filled = ("mask_token",)
    return Converted(official | head, filled=filled)


def from_official(state: Mapping[str, Tensor], where: str = "weights", *, in_memory: bool = False) -> Converted:
    """Official names to those of transformers.

    With a `linear_head` for [CLS, mean patch], the names of `*ForImageClassification` come out, prefix included.

    Args:
        state: official names.
        where: the source, for messages.
        in_memory: the names inside a model of transformers 5.23 in place of those of its files.

    Returns:
        What transformers holds. Dropped: the head over four layers, for which it has no class. Filled: LayerScale of
        ones, where the backbone has none and transformers always has one.

    Raises:
        ConversionError: a part that transformers has no place for, such as an `identity` feed-forward layer.
    """
    body = {name: tensor for name, tensor in state.items() if name not in _HEAD}
    head = {_HEAD[name]: tensor for name, tensor in state.items() if name in _HEAD}
    _check(where, body)
    dim = body["cls_token"].shape[-1]
    scales = _missing_scales(body)
    body |= {name: torch.ones_like(body["cls_token"][0, 0]) for name in scales}
    table = KEYS_IN_MEMORY if in_memory else KEYS
    out = _table.from_official(where, body, table)
    filled = tuple(_table.from_official(where, {name: body[name] for name in scales}, table))
    if not head:
        return Converted(out, filled=filled)
    if head["classifier.weight"].shape[1] != 2 * dim:
        return Converted(out, dropped=tuple(name for name in state if name in _HEAD), filled=filled)
    prefix = _PREFIXES["register_tokens" in body]
    return Converted(
        {prefix + name: tensor for name, tensor in out.items()} | head, filled=tuple(prefix + name for name in filled)
    )


def _missing_scales(body: Mapping[str, Tensor]) -> list[str]:
    norms = [name for name in body if name.startswith("blocks.") and name.endswith((".norm1.weight", ".norm2.weight"))]
    wanted = [name.replace("norm", "ls").replace(".weight", ".gamma") for name in norms]
    return [name for name in wanted if name not in body]


def _check(where: str, body: Mapping[str, Tensor]) -> None:
    faults = [
        fault
        for name, fault in (
            ("cls_token", "has no cls_token"),
            ("blocks.0.mlp.fc2.bias", "has no feed-forward layer with a bias"),
            ("blocks.0.attn.proj.bias", "has no bias in attention's output projection"),
        )
        if name not in body and name.replace("fc2", "w3") not in body
    ]
    if faults:
        raise ConversionError(
            f"{where}: {' and '.join(faults)}, which transformers' Dinov2 cannot do without; "
            "convert to official, which holds any backbone"
        )
