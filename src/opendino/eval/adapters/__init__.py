# SPDX-License-Identifier: Apache-2.0
"""Vision models of other libraries behind the face of our backbone, so that all stand in the same table.

`timm:NAME`, `hf:NAME_OR_PATH` and `open_clip:NAME/PRETRAINED` (the second part may be a local file) open a model of
that library; every other name is one that `opendino.load` knows. A library is imported when it is asked for.
Read next: `_base.py`, the face.
"""

from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from opendino.errors import ConfigError
from opendino.eval.adapters._base import Adapter, Backbone, MapAdapter, TokenAdapter

__all__ = ["LIBRARIES", "Adapter", "Backbone", "MapAdapter", "TokenAdapter", "open_backbone"]

LIBRARIES = MappingProxyType(
    {
        "timm": ("opendino.eval.adapters.timm", "timm", "timm"),
        "hf": ("opendino.eval.adapters.hf", "transformers", "transformers"),
        "open_clip": ("opendino.eval.adapters.open_clip", "open_clip", "open_clip_torch"),
    }
)
"""Prefix -> (module, what it imports, what to install)."""


def open_backbone(name: str) -> Backbone:
    """A model by its name, in float32, on the CPU and in evaluation mode.

    Args:
        name: anything that `opendino.load` takes, or a prefix of `LIBRARIES`, a colon and the library's own name.

    Raises:
        ConfigError: the library is not installed, or does not know the name.
        ModelError: the model is not one that gives features of images.
        CheckpointError: as `opendino.load`.
    """
    prefix, colon, rest = name.partition(":")
    if not colon or prefix not in LIBRARIES or Path(name).exists():
        from opendino.checkpoint.hub import load_backbone

        return load_backbone(name)
    if not rest:
        raise ConfigError(f"{name}: names no model; write {prefix}:NAME")
    module, library, package = LIBRARIES[prefix]
    try:
        import_module(library)
    except ImportError as error:
        raise ConfigError(
            f"{name}: needs {library}, which cannot be imported ({error}); install it by `pip install {package}`"
        ) from None
    backbone = import_module(module).open_model(rest)
    return backbone.float().eval().requires_grad_(False)
