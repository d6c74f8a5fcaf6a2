# SPDX-License-Identifier: Apache-2.0
"""Traces for libtorch, and torch.export programs; called by `shipping.py`."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from opendino.axes import Images
from opendino.errors import ConversionError
from opendino.export.shipping import ExportConfig, Graph, Runner, named

_ABOUT = "opendino.json"


def write(graph: Graph, example: Images, path: Path, config: ExportConfig) -> Runner:
    """Write the graph and open it again.

    Raises:
        ConversionError: PyTorch cannot follow the model.
    """
    try:
        return _trace(graph, example, path) if config.to == "trace" else _program(graph, example, path, config)
    except (RuntimeError, ValueError) as error:  # torch._dynamo's and torch.export's own errors are RuntimeErrors
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(f"{path.name}: PyTorch cannot write the model as {config.to} ({reason})") from error


def _trace(graph: Graph, example: Images, path: Path) -> Runner:
    with warnings.catch_warnings(), torch.no_grad():
        # torch.jit is kept for libtorch; its successor is to=program.
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(graph, (example,))
        torch.jit.save(traced, str(path), _extra_files={_ABOUT: json.dumps({"outputs": graph.outputs})})
        again = torch.jit.load(str(path))

    def run(images: Images) -> dict:
        with torch.no_grad():
            return named(graph.outputs, again(images))

    return run


def _program(graph: Graph, example: Images, path: Path, config: ExportConfig) -> Runner:
    program = torch.export.export(graph, (example,), dynamic_shapes=(shapes(config),))
    torch.export.save(program, str(path), extra_files={_ABOUT: json.dumps({"outputs": graph.outputs})})
    again = torch.export.load(str(path)).module()

    def run(images: Images) -> dict:
        with torch.no_grad():
            return named(graph.outputs, again(images))

    return run


def shapes(config: ExportConfig) -> dict[int, Any] | None:
    """Axes of the images that may differ."""
    dynamic = torch.export.Dim.DYNAMIC
    return {"all": {0: dynamic, 2: dynamic, 3: dynamic}, "batch": {0: dynamic}, "none": None}[config.dynamic]
