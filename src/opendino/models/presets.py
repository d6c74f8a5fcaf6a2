# SPDX-License-Identifier: Apache-2.0
"""The known backbones by name; each is a set of arguments of `vision_transformer.py`.

| presets                              | what they are                                                             |
|--------------------------------------|---------------------------------------------------------------------------|
| vits14 vitb14 vitl14 vitg14          | the published models: table for 518 pixels, LayerScale                    |
| the same with _reg4                  | the published models with four registers                                  |
| vitl16                               | the published ImageNet-1k training shape (224 pixels, patch 16)           |
| vit_tiny16 vit_tiny4                 | ours: DeiT's tiny shape, 5.5 M parameters; /4 is for 32-pixel images      |
| vit_nano4                            | ours: 1.2 M parameters, for 32-pixel images and a CPU                     |
| vit_custom                           | `VisionTransformer`'s own defaults, to be overridden                      |
"""

from dataclasses import dataclass, fields
from typing import Any

from opendino.config import check_numbers
from opendino.errors import ConfigError
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import LIMITS, VisionTransformer

_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
_GIANT = {"embed_dim": 1536, "depth": 40, "num_heads": 24, "ffn_layer": "swiglu"}
_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_NANO = {"embed_dim": 128, "depth": 6, "num_heads": 2}
# 1.0 because weights are loaded over it; training recipes set 1e-5
_HUB = {"img_size": 518, "patch_size": 14, "init_values": 1.0}
_REG4 = {**_HUB, "num_register_tokens": 4, "interpolate_antialias": True, "interpolate_offset": 0.0}
_TRAIN = {"init_values": 1e-5}

PRESETS: dict[str, dict[str, Any]] = {
    "vits14": {**_SMALL, **_HUB},
    "vitb14": {**_BASE, **_HUB},
    "vitl14": {**_LARGE, **_HUB},
    "vitg14": {**_GIANT, **_HUB},
    "vits14_reg4": {**_SMALL, **_REG4},
    "vitb14_reg4": {**_BASE, **_REG4},
    "vitl14_reg4": {**_LARGE, **_REG4},
    "vitg14_reg4": {**_GIANT, **_REG4},
    "vitl16": {**_LARGE, **_TRAIN, "img_size": 224, "patch_size": 16},
    "vit_tiny16": {**_TINY, **_TRAIN, "img_size": 224, "patch_size": 16},
    "vit_tiny4": {**_TINY, **_TRAIN, "img_size": 32, "patch_size": 4},
    "vit_nano4": {**_NANO, **_TRAIN, "img_size": 32, "patch_size": 4},
    "vit_custom": {},
}
"""Arguments of `VisionTransformer` by name. Source: official `hub/backbones.py` and `configs/train/`."""

PUBLISHED_EVAL_SIZE = 224
"""Published figures are measured at 224 pixels, also by models whose position table is for 518."""


@dataclass(frozen=True)
class BackboneConfig:
    """A preset and what to change in it; None leaves the preset's value.

    Attributes:
        preset: a name of `PRESETS`; every other field is an argument of `VisionTransformer` under its own name.
        init_values: 0 removes LayerScale (None, as everywhere here, keeps the preset's).
    """

    preset: str = "vits14"
    img_size: int | tuple[int, int] | None = None
    patch_size: int | None = None
    in_chans: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    qkv_bias: bool | None = None
    ffn_bias: bool | None = None
    proj_bias: bool | None = None
    drop_path_rate: float | None = None
    drop_path_uniform: bool | None = None
    init_values: float | None = None
    ffn_layer: str | None = None
    num_register_tokens: int | None = None
    interpolate_antialias: bool | None = None
    interpolate_offset: float | None = None

    def __post_init__(self) -> None:
        check_numbers("backbone", vars(self), LIMITS)

    def arguments(self) -> dict[str, Any]:
        """Arguments of `VisionTransformer`: the preset's, then the overrides.

        Raises:
            ConfigError: the preset is not known.
        """
        if self.preset not in PRESETS:
            raise ConfigError(f"backbone: preset {self.preset!r} is not known; choose one of {', '.join(PRESETS)}")
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "preset"}
        return PRESETS[self.preset] | {name: value for name, value in given.items() if value is not None}

    def build(self) -> VisionTransformer:
        """A freshly initialised backbone.

        Raises:
            ConfigError: the preset is not known.
            ModelError: a shape that cannot be built.
        """
        model = VisionTransformer(**self.arguments())
        if self.img_size is None and PRESETS[self.preset].get("img_size") == _HUB["img_size"]:
            model.input_spec = InputSpec.default((PUBLISHED_EVAL_SIZE, PUBLISHED_EVAL_SIZE), model.in_chans)
        return model


def create(preset: str = "vits14", **overrides: Any) -> VisionTransformer:  # noqa: ANN401  fields of BackboneConfig
    """A freshly initialised backbone by name: `create("vits14_reg4", in_chans=4)`.

    It is in training mode (`opendino.load` gives evaluation mode), where `drop_path_rate` drops branches at random;
    call `.eval()` before taking features.

    Args:
        preset: a name of `PRESETS`.
        overrides: arguments of `VisionTransformer` that differ from the preset's.

    Raises:
        ConfigError: a name that does not exist.
        ModelError: a shape that cannot be built.
    """
    unknown = overrides.keys() - {f.name for f in fields(BackboneConfig)}
    if unknown:
        known = ", ".join(f.name for f in fields(BackboneConfig)[1:])
        raise ConfigError(
            f"create: {', '.join(sorted(unknown))} is not a setting of a backbone; the settings are {known}"
        )
    return BackboneConfig(preset, **overrides).build()
