# SPDX-License-Identifier: Apache-2.0
"""Names of blocks in official weights, which training in chunks numbers twice; `vision_transformer.py` loads them."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from opendino.errors import ConversionError


def fold_chunks(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Official state dict without its chunk numbers: `blocks.1.3.norm1.weight` -> `blocks.3.norm1.weight`.

    Official training groups blocks into chunks for sharding; the second number is the block's own. Other keys
    pass unchanged, so a state dict without chunks comes out as it went in.

    Args:
        state: parameter names and values.
        prefix: what stands before `blocks.` in the names.

    Raises:
        ConversionError: two names would become one.

    Source: official `models/vision_transformer.py`, block_chunks.
    """
    pattern = re.compile(rf"^({re.escape(prefix)}blocks\.)\d+\.(\d+\.)")
    folded: dict[str, Any] = {}
    for key, value in state.items():
        name = pattern.sub(r"\1\2", key)
        if name in folded:
            raise ConversionError(
                f"fold_chunks: {key} and another key both become {name}; pass weights of one model only"
            )
        folded[name] = value
    return folded


def fold_on_load(_module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Hook of a backbone: fold what is loaded into it, in place."""
    folded = fold_chunks(state, prefix)
    if folded.keys() != state.keys():
        state.clear()
        state.update(folded)
