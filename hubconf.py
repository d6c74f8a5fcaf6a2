# SPDX-License-Identifier: Apache-2.0
"""The official entry points for `torch.hub`, with the same names and numbers.

    torch.hub.load("path/to/this/checkout", "dinov2_vits14_reg", source="local")
    torch.hub.load("path/to/this/checkout", "dinov2_vits14_lc", source="local", layers=1)

Weights come from the caches or the network as `opendino.load` finds them. `pretrained=False` gives an untrained model,
`weights=FILE` takes them from a file. Other words are arguments of the backbone.
"""

# torch.hub lists every name without an underscore as an entry point.
import functools as _functools
import pathlib as _pathlib
import sys as _sys

dependencies = ["torch", "safetensors", "huggingface_hub", "pydantic", "yaml", "jaxtyping"]

_source = str(_pathlib.Path(__file__).parent / "src")
if _source not in _sys.path:
    _sys.path.insert(0, _source)  # a checkout that torch.hub loads need not be installed

import opendino as _opendino  # noqa: E402  after its place is known
from opendino.checkpoint import catalog as _catalog  # noqa: E402
from opendino.models.classifier import LinearClassifier as _LinearClassifier  # noqa: E402


def _entry_point(entry, *, pretrained=True, weights=None, layers=4, **arguments):
    classifier = {"layers": layers} if entry.heads else {}
    if weights is not None or pretrained:
        return _opendino.load(weights or entry.name, **({} if weights else classifier), **arguments)
    backbone = _opendino.create(entry.preset, **{"img_size": 518, **arguments})
    return _LinearClassifier(backbone, layers=layers) if entry.heads else backbone


for _entry in _catalog.ENTRIES:
    if _entry.source == "official":
        _function = _functools.partial(_entry_point, _entry)
        _function.__doc__ = (
            f"DINOv2 {_entry.preset}{' with its ImageNet-1k classifier' if _entry.heads else ''}; "
            "see the top of this file for its arguments."
        )
        globals()[_entry.name] = _function
