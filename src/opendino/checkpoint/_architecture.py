# SPDX-License-Identifier: Apache-2.0
"""The arguments of a backbone, read from the names and shapes of its weights.

A state dict says everything but the number of heads, the height and width of a position table that is not square, and
how that table is resized; for those the published rules stand in, and a caller may say otherwise.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from opendino.checkpoint._tensors import as_float32, check_ranks
from opendino.checkpoint.convert._table import some
from opendino.errors import ConversionError
from opendino.layers.swiglu import swiglu_hidden_dim
from opendino.models.presets import PRESETS
from opendino.models.vision_transformer import VisionTransformer

_BLOCK = re.compile(r"blocks\.(\d{1,9})\.")
HEAD_WIDTH = 64
"""Channels of an attention head in all published models."""


def infer(where: str, state: Mapping[str, Tensor], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of `VisionTransformer` for a flat state dict with official names.

    Args:
        where: the file, for messages.
        state: names and tensors, chunks folded.
        known: arguments that are known from elsewhere; they win.

    Raises:
        ConversionError: a tensor that every backbone has is missing, or an argument cannot be told from the shapes.

    Source: published models have heads of 64 channels, a square position table, and, with registers, resize it with
        antialiasing and without an offset.
    """
    given = dict(known or {})
    size, heads = given.pop("img_size", None), given.pop("num_heads", None)
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight", "blocks.0.norm1.weight"):
        if name not in state:
            raise ConversionError(
                f"{where}: no tensor '{name}'; a DINOv2 backbone has it, and these names came: {some(sorted(state))}"
            )
    check_ranks(where, state)
    dim = state["cls_token"].shape[-1]
    if dim == 0:
        raise ConversionError(f"{where}: cls_token is empty; download or copy the weights again")
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    patch = state["patch_embed.proj.weight"].shape[-1]
    return {
        "img_size": size or _side(where, state["pos_embed"].shape[1] - 1) * patch,
        "patch_size": patch,
        "in_chans": state["patch_embed.proj.weight"].shape[1],
        "embed_dim": dim,
        "depth": 1 + max(int(match[1]) for match in map(_BLOCK.match, state) if match),
        "num_heads": _heads(where, dim) if heads is None else heads,
        **_feed_forward(where, state, dim),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "proj_bias": "blocks.0.attn.proj.bias" in state,
        # Any non-zero start makes the layer; its values are then loaded.
        "init_values": 1.0 if "blocks.0.ls1.gamma" in state else None,
        "num_register_tokens": registers,
        "interpolate_antialias": registers > 0,
        "interpolate_offset": 0.0 if registers else 0.1,
        **given,
    }


def check_claims(where: str, backbone: VisionTransformer, claims: Mapping[str, Any]) -> None:
    """Compare what a file beside the weights states with the backbone that the weights made.

    A shape is read from the tensors that are there, so weights that lack their last blocks would make a smaller model.

    Raises:
        ConversionError: naming each difference.
    """
    found = arguments_of(backbone) | {"ffn_width": _ffn_width(backbone)}
    differing = [f"{name} {value}, the weights {found[name]}" for name, value in claims.items() if found[name] != value]
    if differing:
        raise ConversionError(
            f"{where}: its config.json says {'; '.join(differing)}; weights are missing, or the two files do not "
            "belong together"
        )


def check_preset(where: str, backbone: VisionTransformer, name: str, preset: str) -> None:
    """Compare a model with the architecture that a published name stands for.

    Raises:
        ConversionError: naming each difference.
    """
    with torch.device("meta"):
        published = arguments_of(VisionTransformer(**PRESETS[preset]))
    found = arguments_of(backbone)
    rule = ("interpolate_antialias", "interpolate_offset")  # of the library, not of the weights
    differing = [
        f"{argument} {value}, the file {found[argument]}"
        for argument, value in published.items()
        if argument not in rule and found[argument] != value
    ]
    if differing:
        raise ConversionError(
            f"{where}: {name} has {'; '.join(differing)}; another file stands in its place: remove it and load again, "
            "or give its path"
        )


def _ffn_width(backbone: VisionTransformer) -> int:
    """What the last layer of a feed-forward layer takes; 0 where there is none."""
    state = backbone.state_dict()
    last = state.get("blocks.0.mlp.fc2.weight", state.get("blocks.0.mlp.w3.weight"))
    return 0 if last is None else last.shape[1]


def arguments_of(backbone: VisionTransformer) -> dict[str, Any]:
    """Arguments that build a backbone of the same shape and the same resizing; stochastic depth is left out."""
    height, width = (side * backbone.patch_size for side in backbone.grid)
    known = {
        "img_size": height if height == width else (height, width),
        "num_heads": backbone.num_heads,
        "interpolate_antialias": backbone.interpolate_antialias,
        "interpolate_offset": backbone.interpolate_offset,
    }
    return infer("backbone", backbone.state_dict(), known)


def assemble(where: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor]) -> VisionTransformer:
    """Build a backbone and give it its weights, in float32 and evaluation mode; draws no random number.

    Args:
        where: the file, for messages.
        arguments: of `VisionTransformer`.
        state: every parameter under its official name, and nothing else.

    Raises:
        ConversionError: names or shapes differ, or something is no weight; the message names them.
        ModelError: a shape that cannot be built.
    """
    _check_blocks(where, arguments.get("depth"), state)
    try:
        with torch.device("meta"):
            backbone = VisionTransformer(**arguments)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ConversionError(f"{where}: no backbone can be built with {dict(arguments)} ({error})") from None
    wanted = backbone.state_dict()
    faults = [f"lacks {some(sorted(wanted.keys() - state.keys()))}"] if wanted.keys() - state.keys() else []
    faults += [f"has also {some(sorted(state.keys() - wanted.keys()))}"] if state.keys() - wanted.keys() else []
    odd = [
        f"{name} is {_shape(state[name])} where {_shape(tensor)} is wanted"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults += [some(odd)] if odd else []
    if faults:
        raise ConversionError(
            f"{where}: does not fit a backbone of {backbone.depth} blocks of width {backbone.embed_dim} "
            f"with patch {backbone.patch_size}: {'; '.join(faults)}"
        )
    backbone.load_state_dict(as_float32(where, state), strict=True, assign=True)
    return backbone.eval()


def _check_blocks(where: str, depth: object, state: Mapping[str, Tensor]) -> None:
    """Refuse weights of which whole blocks are missing before so many are built: a name may say any number."""
    there = {int(match[1]) for match in map(_BLOCK.match, state) if match}
    if not isinstance(depth, int) or depth > len(there):
        missing = next((n for n in range(depth) if n not in there), 0) if isinstance(depth, int) else 0
        raise ConversionError(
            f"{where}: does not fit a backbone of {depth} blocks: {len(there)} are there, and nothing of "
            f"blocks.{missing}; download or copy the weights again"
        )


def _side(where: str, patches: int) -> int:
    side = math.isqrt(patches)
    if side * side != patches:
        raise ConversionError(
            f"{where}: the position table has {patches} patches, which is not a square; "
            "say which grid it is by img_size=(height, width)"
        )
    return side


def _heads(where: str, dim: int) -> int:
    if dim % HEAD_WIDTH:
        raise ConversionError(
            f"{where}: the number of attention heads does not show in the weights, and width {dim} is not a multiple "
            f"of {HEAD_WIDTH} as in all published models; say it by num_heads="
        )
    return dim // HEAD_WIDTH


def _feed_forward(where: str, state: Mapping[str, Tensor], dim: int) -> dict[str, Any]:
    if "blocks.0.mlp.fc1.weight" in state:
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        return {"ffn_layer": "mlp", "mlp_ratio": hidden / dim, "ffn_bias": "blocks.0.mlp.fc1.bias" in state}
    if "blocks.0.mlp.w12.weight" not in state:
        return {"ffn_layer": "identity", "mlp_ratio": 4.0, "ffn_bias": True}
    gated = state["blocks.0.mlp.w12.weight"].shape[0] // 2
    # The gated width is 2/3 of the plain one, rounded; the published plain width is 4 D.
    plain = next((h for h in (4 * dim, *range(gated, 2 * gated)) if swiglu_hidden_dim(h) == gated), None)
    if plain is None:
        raise ConversionError(f"{where}: a gated layer of width {gated} is none that SwiGLU's rounding gives")
    return {"ffn_layer": "swiglu", "mlp_ratio": plain / dim, "ffn_bias": "blocks.0.mlp.w12.bias" in state}


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
