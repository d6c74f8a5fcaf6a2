# SPDX-License-Identifier: Apache-2.0
"""A model in the form that other programs run; every export is opened again by its own runtime and compared.

Start with `shipping.py` (what all formats share), `graph.py` and `heads.py` (what a graph gives), then a format:
`hf_folder.py`, `program.py` (traces and torch.export), `onnx.py`.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opendino.export.shipping import ExportConfig, export

__all__ = ["FORMATS", "ExportConfig", "export"]

FORMATS = MappingProxyType(
    {
        "hf": ("opendino.export.hf_folder", "a folder that transformers opens, with a card"),
        "trace": ("opendino.export.program", "a TorchScript trace (.pt), for libtorch"),
        "program": ("opendino.export.program", "a torch.export program (.pt2)"),
        "onnx": ("opendino.export.onnx", "an ONNX graph (.onnx)"),
    }
)
"""Format -> (module, what it is); modules are imported when asked for."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'opendino.export' has no attribute '{name}'")
    return getattr(import_module("opendino.export.shipping"), name)
