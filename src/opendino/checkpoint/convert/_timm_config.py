# SPDX-License-Identifier: Apache-2.0
"""timm's `config.json`, in the layout of its models on the hub and of `create_model("local-dir:FOLDER")`."""

from collections.abc import Mapping
from typing import Any

from opendino.layers.swiglu import swiglu_hidden_dim
from opendino.models.input_spec import InputSpec

_SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
_BASE = {"patch_size": 14, "init_values": 1e-5, "img_size": 518, "in_chans": 3, "qkv_bias": True, "proj_bias": True}
_PLAIN = {**_BASE, "mlp_ratio": 4.0}
_SHAPES = {
    "small": {**_PLAIN, "embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {**_PLAIN, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {**_PLAIN, "embed_dim": 1024, "depth": 24, "num_heads": 16},
    # 5.33334: gate and value in one layer, each of the gated width
    "giant": {**_BASE, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 2.66667 * 2},
}
"""What timm's functions `vit_{size}_patch14_[reg4_]dinov2` build. Source: timm 1.0.31, vision_transformer.py."""


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `VisionTransformer` that the weights do not show: `img_size` and `num_heads`."""
    given, stated = config.get("model_args") or {}, _stated(config)
    known: dict[str, Any] = {}
    if "num_heads" in stated:
        known["num_heads"] = stated["num_heads"]
    size = given.get("img_size", (config.get("pretrained_cfg") or {}).get("input_size", ())[1:])
    if size:
        known["img_size"] = size if isinstance(size, int) else tuple(size)
    return known


_CLAIMS = ("depth", "embed_dim", "in_chans", "patch_size", "qkv_bias", "ffn_layer")


def claims(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `VisionTransformer` that the file states and the weights must show too.

    The name of a DINOv2 architecture states them, `model_args` what differs from it.
    """
    stated = _stated(config)
    found = {argument: stated[argument] for argument in _CLAIMS if argument in stated}
    if "reg_tokens" in stated:
        found["num_register_tokens"] = stated["reg_tokens"]
    if {"ffn_layer", "embed_dim", "mlp_ratio"} <= stated.keys():
        first = int(stated["embed_dim"] * stated["mlp_ratio"])
        found["ffn_width"] = first // 2 if stated["ffn_layer"] == "swiglu" else first
    return found


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    given, name = config.get("model_args") or {}, str(config.get("architecture", ""))
    size = next((size for size in _SHAPES if f"_{size}_" in name and "dinov2" in name), None)
    if size is None:
        return dict(given)
    layer = "swiglu" if size == "giant" else "mlp"
    return {**_SHAPES[size], "ffn_layer": layer, "reg_tokens": 4 if "_reg4_" in name else 0, **given}


def read_spec(config: Mapping[str, Any], channels: int) -> InputSpec | None:
    """What images a model expects; None where the file does not say it for this number of channels."""
    given = config.get("pretrained_cfg") or {}
    mean, std, size = given.get("mean"), given.get("std"), given.get("input_size")
    if not mean or not std or not size or len(mean) != channels:
        return None
    return InputSpec((size[1], size[2]), channels, tuple(mean), tuple(std))


def write(arguments: Mapping[str, Any], spec: InputSpec) -> dict[str, Any]:
    """`config.json` of a backbone: the nearest architecture that timm has, and what differs from it.

    Args:
        arguments: of `VisionTransformer`.
        spec: what images it expects; timm's input size is that of the position table.
    """
    gated = arguments["ffn_layer"] == "swiglu"
    size = "giant" if gated else _SIZES.get(arguments["embed_dim"], "base")
    size = "base" if size == "giant" and not gated else size
    registers = arguments["num_register_tokens"]
    ours = {**{name: arguments[name] for name in _SHAPES[size]}, "mlp_ratio": _ratio(arguments)}
    differing = {name: value for name, value in ours.items() if not _agree(name, value, _SHAPES[size][name])}
    if registers not in (0, 4):
        differing["reg_tokens"] = registers
    side = arguments["img_size"]
    height, width = (side, side) if isinstance(side, int) else side
    return {
        "architecture": f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2",
        "num_classes": 0,
        "num_features": arguments["embed_dim"],
        "global_pool": "token",
        **({"model_args": differing} if differing else {}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [arguments["in_chans"], height, width],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        },
    }


def _ratio(arguments: Mapping[str, Any]) -> float:
    """Ratio in the sense of timm: of what the first layer makes, which for gated layers is gate and value."""
    if arguments["ffn_layer"] != "swiglu":
        return arguments["mlp_ratio"]
    dim = arguments["embed_dim"]
    wanted = 2 * swiglu_hidden_dim(int(dim * arguments["mlp_ratio"]))
    published = _SHAPES["giant"]["mlp_ratio"]
    if int(dim * published) == wanted:
        return published
    return wanted / dim if int(dim * (wanted / dim)) == wanted else (wanted + 0.5) / dim


def _agree(name: str, ours: Any, theirs: Any) -> bool:  # noqa: ANN401  numbers, flags, a size or None
    if name == "init_values":  # any start makes the layer, whose values are then loaded
        return (ours is None) == (theirs is None)
    return ours == theirs
