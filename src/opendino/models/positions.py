# SPDX-License-Identifier: Apache-2.0
"""Whose rule resizes the position table; the arithmetic is in `opendino.layers.pos_embed`.

The released models have one table, for 518 pixels, and three libraries resize it in three ways for other sizes. All
agree on register models. Features of plain models differ by about a tenth at 224 pixels, so a model must follow the
library that its user compares with:

| rule     | plain models                          | register models              |
|----------|---------------------------------------|------------------------------|
| official | step of the grid + 0.1, no antialias  | to the size, antialias       |
| hf       | to the size, no antialias             | to the size, antialias       |
| timm     | to the size, antialias                | to the size, antialias       |
"""

from types import MappingProxyType
from typing import TypedDict

from opendino.errors import ConfigError
from opendino.models.vision_transformer import VisionTransformer


class Positions(TypedDict):
    """The two arguments of `VisionTransformer` that make a rule."""

    interpolate_offset: float
    interpolate_antialias: bool


_TENTH = Positions(interpolate_offset=0.1, interpolate_antialias=False)
_SIZE = Positions(interpolate_offset=0.0, interpolate_antialias=False)
_SMOOTH = Positions(interpolate_offset=0.0, interpolate_antialias=True)
RULES = MappingProxyType({"official": (_TENTH, _SMOOTH), "hf": (_SIZE, _SMOOTH), "timm": (_SMOOTH, _SMOOTH)})
"""Name of the rule -> (for plain models, for register models).

Source: official `hub/backbones.py` at b8931f7; transformers 5.23 `models/dinov2*`; timm 1.0.31 `layers/pos_embed.py`.
"""


def positions(rule: str, registers: bool) -> Positions:
    """Arguments of `VisionTransformer` for a rule.

    Args:
        rule: a name of `RULES`.
        registers: whether the model has register tokens.

    Raises:
        ConfigError: the rule is not known.
    """
    if rule not in RULES:
        raise ConfigError(f"positions={rule!r} is not known; choose one of {', '.join(RULES)}")
    return RULES[rule][registers]


def rule_name(interpolate_offset: float, interpolate_antialias: bool, registers: bool) -> str | None:
    """Name of the rule that two arguments of `VisionTransformer` make, the first of `RULES`; None for none of them."""
    given = Positions(interpolate_offset=interpolate_offset, interpolate_antialias=interpolate_antialias)
    return next((rule for rule, kinds in RULES.items() if kinds[registers] == given), None)


def set_positions(model: VisionTransformer, rule: str) -> None:
    """Resize a model's position table by another rule from now on.

    Raises:
        ConfigError: the rule is not known.
    """
    chosen = positions(rule, model.num_register_tokens > 0)
    model.interpolate_offset = chosen["interpolate_offset"]
    model.interpolate_antialias = chosen["interpolate_antialias"]
