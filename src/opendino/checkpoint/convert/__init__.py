# SPDX-License-Identifier: Apache-2.0
"""Weights under the names of others: one file a format, each with `KEYS`, `to_official` and `from_official`.

`to_official` takes what a file of the format holds and gives the names that `opendino.models` uses; `from_official`
goes back. Tensors are renamed, cut or joined, never computed with, except where a format's file says so. What a format
cannot hold is in `Converted.dropped`, what it lacked in `Converted.filled`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

FORMATS = MappingProxyType(
    {
        "official": "opendino.checkpoint.convert.official",
        "hf": "opendino.checkpoint.convert.hf",
        "timm": "opendino.checkpoint.convert.timm",
    }
)
"""Format -> module; the names are also those of the rules for position tables in `opendino.models.positions`."""


def format_of(content: Mapping[str, Any]) -> str:
    """The format of a file's content, told by names that only one format has.

    timm's plain models differ from the official ones in the missing mask token alone.
    """
    names = [str(name) for name in content]
    if any(name.endswith("embeddings.cls_token") for name in names):
        return "hf"
    if "reg_token" in names or ("cls_token" in names and not {"mask_token", "register_tokens"} & set(names)):
        return "timm"
    return "official"
