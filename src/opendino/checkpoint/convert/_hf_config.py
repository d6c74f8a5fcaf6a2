# SPDX-License-Identifier: Apache-2.0
"""The two JSON files beside a Hugging Face model: `config.json` and `preprocessor_config.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from opendino.errors import ConversionError
from opendino.layers.swiglu import swiglu_hidden_dim
from opendino.models.input_spec import InputSpec
from opendino.models.positions import RULES, positions, rule_name

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
MODEL_TYPES = ("dinov2", "dinov2_with_registers")
_CLASSES = ("Dinov2", "Dinov2WithRegisters")
_EPS = 1e-6
_RESIZE_OVER_CROP = 256 / 224


def read(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments of `VisionTransformer` that the weights do not show: `img_size` and `num_heads`.

    Raises:
        ConversionError: the model computes something that ours does not.
    """
    wanted = {"hidden_act": "gelu", "layer_norm_eps": _EPS}
    odd = [f"{name}={config[name]!r}" for name, value in wanted.items() if config.get(name, value) != value]
    patch = config.get("patch_size", 14)
    if not isinstance(patch, int) and len(set(patch)) > 1:
        odd.append(f"patch_size={patch}")
    if odd:
        raise ConversionError(
            f"{where}: {', '.join(odd)} is not what DINOv2 computes with (hidden_act='gelu', layer_norm_eps=1e-6, "
            "square patches); such a model cannot be converted"
        )
    known: dict[str, Any] = {}
    if "num_attention_heads" in config:
        known["num_heads"] = config["num_attention_heads"]
    if "image_size" in config:
        size = config["image_size"]
        known["img_size"] = size if isinstance(size, int) else tuple(size)
    return known


DEFAULTS = {"num_heads": 12}
"""What transformers takes for an argument that neither the file nor the weights show."""
_CLAIMS = {
    "num_hidden_layers": "depth",
    "hidden_size": "embed_dim",
    "num_channels": "in_chans",
    "num_register_tokens": "num_register_tokens",
    "qkv_bias": "qkv_bias",
}


def claims(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `VisionTransformer` that the file states and the weights must show too."""
    stated = {argument: config[name] for name, argument in _CLAIMS.items() if name in config}
    if config.get("model_type") == MODEL_TYPES[0]:
        stated["num_register_tokens"] = 0
    if "patch_size" in config:
        patch = config["patch_size"]
        stated["patch_size"] = patch if isinstance(patch, int) else patch[0]
    gated = config.get("use_swiglu_ffn")
    if gated is not None:
        stated["ffn_layer"] = "swiglu" if gated else "mlp"
    if "mlp_ratio" in config and "hidden_size" in config:
        plain = int(config["hidden_size"] * config["mlp_ratio"])
        stated["ffn_width"] = swiglu_hidden_dim(plain) if gated else plain
    return stated


def rule_of(config: Mapping[str, Any], where: str) -> str:
    """Whose rule resizes the position table: transformers', unless opendino's face wrote another one.

    Raises:
        ConversionError: there is no such rule.
    """
    rule = config.get("pos_embed_resize", "hf")
    if rule not in RULES:
        raise ConversionError(
            f"{where}: pos_embed_resize={rule!r} in {CONFIG} is not known; choose one of {', '.join(RULES)}"
        )
    return rule


def wants_head(config: Mapping[str, Any]) -> bool:
    """Whether the file says that a classifier is among the weights."""
    return any(str(name).endswith("ForImageClassification") for name in config.get("architectures") or ())


def write(arguments: Mapping[str, Any], labels: Sequence[str] | None = None) -> dict[str, Any]:
    """`config.json` of a backbone, or of a classifier where there are labels.

    Args:
        arguments: of `VisionTransformer`.
        labels: names of the classes.

    Returns:
        The fields of transformers, and `pos_embed_resize` where the table is not resized by transformers' own rule;
        opendino reads it, transformers pays no heed. A feed-forward width that is no whole multiple of D makes a
        fraction of `mlp_ratio`, which transformers 5 refuses.
    """
    registers, depth, size = arguments["num_register_tokens"], arguments["depth"], arguments["img_size"]
    kind = registers > 0
    config = {
        "apply_layernorm": True,
        "architectures": [_CLASSES[kind] + ("Model" if labels is None else "ForImageClassification")],
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": arguments["embed_dim"],
        "image_size": size if isinstance(size, int) else list(size),
        "initializer_range": 0.02,
        "layer_norm_eps": _EPS,
        "layerscale_value": 1.0,
        "mlp_ratio": whole_ratio(arguments),
        "model_type": MODEL_TYPES[kind],
        "num_attention_heads": arguments["num_heads"],
        "num_channels": arguments["in_chans"],
        "num_hidden_layers": depth,
        "out_features": [f"stage{depth}"],
        "out_indices": [depth],
        "patch_size": arguments["patch_size"],
        "qkv_bias": arguments["qkv_bias"],
        "reshape_hidden_states": True,
        "stage_names": ["stem", *(f"stage{i + 1}" for i in range(depth))],
        "torch_dtype": "float32",
        "use_swiglu_ffn": arguments["ffn_layer"] == "swiglu",
    }
    if registers:
        config["num_register_tokens"] = registers
    resizing = {name: arguments[name] for name in ("interpolate_offset", "interpolate_antialias")}
    if resizing != positions("hf", kind) and (rule := rule_name(**resizing, registers=kind)):
        config["pos_embed_resize"] = rule
    if labels is not None:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    return config


def whole_ratio(arguments: Mapping[str, Any]) -> int | float:
    """The ratio as a whole number where one gives the same width, which rounding lets several do; else as it is."""
    ratio, dim = arguments["mlp_ratio"], arguments["embed_dim"]
    if ratio == int(ratio):
        return int(ratio)
    if arguments["ffn_layer"] == "swiglu":
        width = swiglu_hidden_dim(int(dim * ratio))
        return next((n for n in range(1, int(ratio) + 2) if swiglu_hidden_dim(n * dim) == width), ratio)
    return ratio


def labels_of(config: Mapping[str, Any], classes: int, where: str) -> tuple[str, ...] | None:
    """Names of the classes in order; None where the config names none.

    Raises:
        ConversionError: the config names another number of classes than the classifier has.
    """
    names = {int(i): str(label) for i, label in (config.get("id2label") or {}).items()}
    if names and set(names) != set(range(classes)):
        raise ConversionError(
            f"{where}: its {CONFIG} names {len(names)} classes in id2label, the classifier has {classes}; "
            "the two files do not belong together"
        )
    return tuple(names[i] for i in range(classes)) if names else None


def read_spec(preprocessor: Mapping[str, Any], channels: int) -> InputSpec | None:
    """What images a model expects; None where the file says it for another number of channels."""
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    crop = preprocessor.get("crop_size") or preprocessor.get("size")
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    if not mean or not std or not isinstance(crop, Mapping) or len(mean) != channels:
        return None
    height = crop.get("height", crop.get("shortest_edge"))
    width = crop.get("width", crop.get("shortest_edge"))
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    return InputSpec((height, width), channels, tuple(mean), tuple(std))


def write_spec(spec: InputSpec) -> dict[str, Any]:
    """`preprocessor_config.json` as published: bicubic resize to 256, centre crop to 224, scaled for other sizes."""
    return {
        "crop_size": {"height": spec.size[0], "width": spec.size[1]},
        "do_center_crop": True,
        "do_convert_rgb": spec.channels == 3,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(spec.mean),
        "image_processor_type": "BitImageProcessor",
        "image_std": list(spec.std),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": int(max(spec.size) * _RESIZE_OVER_CROP)},
    }
