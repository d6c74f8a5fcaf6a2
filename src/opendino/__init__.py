# SPDX-License-Identifier: Apache-2.0
"""A complete DINOv2: curate, pretrain, adapt, distil, evaluate, use and ship general-purpose visual features.

`opendino.load(name_or_path)` opens weights, `opendino.create(preset)` builds a backbone, `opendino.optimize(model)`
makes a fast copy of either for inference; the command `opendino` does the rest. Names are resolved on first use, so
importing this package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opendino.checkpoint.hub import load
    from opendino.fast.optimize import optimize
    from opendino.models.presets import create

__version__ = "0.1.0.dev0"
__all__ = ["__version__", "create", "load", "optimize"]

_HOMES = {
    "load": "opendino.checkpoint.hub",
    "create": "opendino.models.presets",
    "optimize": "opendino.fast.optimize",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'opendino' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
