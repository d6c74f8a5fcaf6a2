# SPDX-License-Identifier: Apache-2.0
"""The two configs of the Hugging Face face, file-compatible with the published `config.json`; read `modeling.py` next.

They hold one field more than transformers': `pos_embed_resize`, whose numbers the position table follows at another
image size (see `opendino.models.positions`). Plain transformers keeps it as an unknown attribute and goes on.
"""

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PretrainedConfig

from opendino.errors import ConfigError
from opendino.models.positions import RULES, positions

Number = int | float
Grid = tuple[int, int]
"""Two sides in the order (height, width)."""


def _same_fields(self: Any, other: Any) -> bool:  # noqa: ANN401
    return type(other) is type(self) and self.to_dict() == other.to_dict()


class Staged:
    """The part of a config that names the outputs of a backbone: "stem", "stage1" ... "stageN".

    `out_features` (names) and `out_indices` (numbers, negative ones count from the end) always say the same; setting
    one re-aligns the other, None stands for the last stage.
    """

    def _set_stages(
        self, depth: int, out_features: Sequence[str] | None = None, out_indices: Sequence[int] | None = None
    ) -> None:
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, depth + 1))]
        self._out_features, self._out_indices = align_stages(self.stage_names, out_features, out_indices)

    @property
    def out_features(self) -> list[str]:
        """Names of the stages that a backbone gives out, in the order of depth."""
        return self._out_features

    @out_features.setter
    def out_features(self, names: Sequence[str] | None) -> None:
        self._out_features, self._out_indices = align_stages(self.stage_names, names, None)

    @property
    def out_indices(self) -> list[int]:
        """Numbers of the stages that a backbone gives out; 0 is the stem."""
        return self._out_indices

    @out_indices.setter
    def out_indices(self, indices: Sequence[int] | None) -> None:
        self._out_features, self._out_indices = align_stages(self.stage_names, None, indices)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, with the public names of the stages."""
        fields: dict[str, Any] = super().to_dict()  # pyrefly: ignore[missing-attribute]
        fields["out_features"] = fields.pop("_out_features", None)
        fields["out_indices"] = fields.pop("_out_indices", None)
        return fields

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401  passed on
        super().__init_subclass__(**kwargs)
        # transformers 5 turns every config into a dataclass that compares only the fields its base class declares.
        cls.__eq__ = _same_fields  # pyrefly: ignore[bad-assignment]
        cls.__hash__ = None  # pyrefly: ignore[bad-assignment]


class Dinov2Config(Staged, PretrainedConfig):
    """Shape of a DINOv2 model without registers.

    Args:
        hidden_size: width D.
        num_hidden_layers: number of blocks.
        num_attention_heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layers over D; may be a fraction.
        hidden_act: name of the activation of the plain feed-forward layer.
        hidden_dropout_prob: dropout after the embeddings and, with transformers 4 as there, after attention;
            transformers 5 dropped the second.
        attention_probs_dropout_prob: dropout of attention's weights.
        initializer_range: standard deviation of new weights.
        layer_norm_eps: added to the variance in every norm.
        image_size: side, or (height, width), of the images the position table is laid out for.
        patch_size: side, or (height, width), of a patch in pixels.
        num_channels: image channels.
        qkv_bias: bias of the query, key and value projections.
        layerscale_value: start of LayerScale.
        drop_path_rate: stochastic depth in training, the same in every block.
        use_swiglu_ffn: gated feed-forward layers, as in the giant model.
        out_features: stages that a backbone gives out; None is the last.
        out_indices: the same by number.
        apply_layernorm: pass each feature map of a backbone through the final norm.
        reshape_hidden_states: give feature maps as [B, D, h, w]; else all tokens [B, T, D].
        use_mask_token: whether the model has a mask token.
        pos_embed_resize: "hf" (transformers' numbers), "official" or "timm".
        **kwargs: fields of every config (labels, `return_dict`, `dtype` ...); unknown ones are kept.

    Raises:
        ConfigError: a shape that cannot be built, or an unknown `pos_embed_resize`; also a ValueError.

    Source: transformers 4.57 and 5.23, `Dinov2Config`, field by field.
    Differs: `mlp_ratio` may be a fraction; non-square `image_size` works; `pos_embed_resize` is ours.
    """

    model_type = "dinov2"

    def __init__(  # noqa: PLR0913  the published fields
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        mlp_ratio: Number = 4,
        hidden_act: str | Callable = "gelu",
        hidden_dropout_prob: Number = 0.0,
        attention_probs_dropout_prob: Number = 0.0,
        initializer_range: Number = 0.02,
        layer_norm_eps: Number = 1e-6,
        image_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 14,
        num_channels: int = 3,
        qkv_bias: bool = True,
        layerscale_value: Number = 1.0,
        drop_path_rate: Number = 0.0,
        use_swiglu_ffn: bool = False,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        apply_layernorm: bool = True,
        reshape_hidden_states: bool = True,
        use_mask_token: bool = True,
        pos_embed_resize: str = "hf",
        **kwargs: Any,  # noqa: ANN401  whatever a config.json holds
    ) -> None:
        kwargs.pop("stage_names", None)  # follows from num_hidden_layers
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.mlp_ratio = mlp_ratio
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.qkv_bias = qkv_bias
        self.layerscale_value = layerscale_value
        self.drop_path_rate = drop_path_rate
        self.use_swiglu_ffn = use_swiglu_ffn
        self.apply_layernorm = apply_layernorm
        self.reshape_hidden_states = reshape_hidden_states
        self.use_mask_token = use_mask_token
        self.pos_embed_resize = pos_embed_resize
        check_shape(self)
        self._set_stages(num_hidden_layers, out_features, out_indices)


class Dinov2WithRegistersConfig(Dinov2Config):
    """Shape of a DINOv2 model with register tokens.

    Args:
        num_register_tokens: register tokens R.
        patch_size: side, or (height, width), of a patch in pixels; its default is 16, published models have 14.
        **kwargs: the fields of `Dinov2Config`, but for `use_mask_token`: these models always have one.

    Source: transformers 4.57 and 5.23, `Dinov2WithRegistersConfig`.
    """

    model_type = "dinov2_with_registers"

    def __init__(
        self,
        num_register_tokens: int = 4,
        patch_size: int | Sequence[int] = 16,
        **kwargs: Any,  # noqa: ANN401  whatever a config.json holds
    ) -> None:
        self.num_register_tokens = num_register_tokens
        super().__init__(patch_size=patch_size, **kwargs)
        del self.use_mask_token  # the published config has no such field


def pair(side: int | Sequence[int]) -> Grid:
    """(height, width) of a field that may be one side or a pair."""
    return (side, side) if isinstance(side, int) else (side[0], side[1])


def align_stages(
    stage_names: Sequence[str], out_features: Sequence[str] | None, out_indices: Sequence[int] | None
) -> tuple[list[str], list[int]]:
    """Names and numbers of the same stages, from either; the last stage where both are None.

    Args:
        stage_names: all stages, in the order of depth.
        out_features: names wanted.
        out_indices: numbers wanted; negative ones count from the end and are kept as they are.

    Raises:
        ConfigError: an unknown stage, one named twice, the wrong order, or names and numbers that do not agree.
    """
    if out_features is None and out_indices is None:
        return [stage_names[-1]], [len(stage_names) - 1]
    if isinstance(out_features, str):
        raise ConfigError(f"out_features: a list of names was wanted, '{out_features}' came; write ['{out_features}']")
    if out_indices is None:
        names = list(out_features or ())
        unknown = [name for name in names if name not in stage_names]
        if unknown:
            raise ConfigError(f"out_features: {unknown} are no stages of this model; it has {list(stage_names)}")
        indices = [stage_names.index(name) for name in names]
    else:
        indices = list(out_indices)
        outside = [i for i in indices if not -len(stage_names) <= i < len(stage_names)]
        if outside:
            raise ConfigError(f"out_indices: {outside} are no stages of this model; it has 0 to {len(stage_names) - 1}")
        names = [stage_names[i] for i in indices]
    if out_features is not None and list(out_features) != names:
        raise ConfigError(
            f"out_features {list(out_features)} and out_indices {indices} name different stages; set one of them"
        )
    if names != [name for name in stage_names if name in names]:
        raise ConfigError(f"out_features, out_indices: {names} must be in the order of depth, each once")
    return names, indices


def check_shape(config: Dinov2Config) -> None:
    """Say early, and in words, what would fail late in the middle of a network."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{type(config).__name__}: {name}={value!r}, a whole number from 1 on was wanted")
    if isinstance(config.mlp_ratio, bool) or not isinstance(config.mlp_ratio, int | float) or not config.mlp_ratio > 0:
        raise ConfigError(f"{type(config).__name__}: mlp_ratio={config.mlp_ratio!r}, a number above 0 was wanted")
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"{type(config).__name__}: hidden_size {config.hidden_size} is no multiple of "
            f"num_attention_heads {config.num_attention_heads}; published models have hidden_size / 64 heads"
        )
    for name in ("image_size", "patch_size"):
        value = getattr(config, name)
        sides = [value] if isinstance(value, int) else value
        if not isinstance(sides, list | tuple) or not 1 <= len(sides) <= 2 or not all(_from(1, side) for side in sides):
            raise ConfigError(
                f"{type(config).__name__}: {name}={value!r}, a side or (height, width) in pixels, from 1 on, was wanted"
            )
    image, patch = pair(config.image_size), pair(config.patch_size)
    if image[0] < patch[0] or image[1] < patch[1]:
        raise ConfigError(f"{type(config).__name__}: image_size={config.image_size!r} holds no patch of {patch}")
    registers = getattr(config, "num_register_tokens", 0)
    if not _from(0, registers):
        raise ConfigError(
            f"{type(config).__name__}: num_register_tokens={registers!r}, a whole number from 0 on was wanted"
        )
    _check_numbers(config)
    resize_numbers(config.pos_embed_resize, registers=False)


def _check_numbers(config: Dinov2Config) -> None:
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ConfigError(f"{type(config).__name__}: {name}={value!r}, a share from 0 up to 1 was wanted")
    for name in ("initializer_range", "layer_norm_eps"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ConfigError(f"{type(config).__name__}: {name}={value!r}, a number from 0 on was wanted")


def _from(least: int, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def resize_numbers(switch: str, *, registers: bool) -> tuple[float, bool]:
    """(offset, antialias) of the position table's resizing.

    Args:
        switch: "hf", "official" or "timm".
        registers: whether the model has register tokens.

    Raises:
        ConfigError: an unknown switch.
    """
    if switch not in RULES:
        raise ConfigError(f"pos_embed_resize={switch!r} is unknown; choose one of {', '.join(RULES)}")
    rule = positions(switch, registers)
    return rule["interpolate_offset"], rule["interpolate_antialias"]
