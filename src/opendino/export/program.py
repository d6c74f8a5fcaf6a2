# SPDX-License-Identifier: Apache-2.0
"""Traces for libtorch, and torch.export programs; called by `shipping.py`."""

import json
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from opendino.axes import Images
from opendino.errors import ConfigError, ConversionError
from opendino.export.graph import Graph
from opendino.export.shipping import ExportConfig, Runner, named

_ABOUT = "opendino.json"


def write(graph: Graph, example: Images, path: Path, config: ExportConfig) -> Runner:
    """Write the graph and open it again.

    Raises:
        ConfigError: no compiler where one is wanted.
        ConversionError: PyTorch cannot follow the model.
    """
    if config.aot:
        _ask_for_a_compiler()
    try:
        if config.to == "trace":
            _trace(graph, example, path)
        else:
            _program(graph, example, path, config)
        return opened(path, graph.outputs, config)
    except (RuntimeError, ValueError) as error:  # torch._dynamo's and torch.export's own errors are RuntimeErrors
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(f"{path.name}: PyTorch cannot write the model as {config.to} ({reason})") from error


def opened(path: Path, outputs: tuple[str, ...], config: ExportConfig) -> Runner:
    """A file of these formats by what PyTorch opens it with, without this package."""
    if config.to == "trace":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            again = torch.jit.load(str(path))
    elif config.aot:
        from torch._inductor import aoti_load_package

        again = aoti_load_package(str(path))
    else:
        with warnings.catch_warnings():
            # Until 2.12, torch lays tensors over the bytes that it read, which nobody writes to, and warns of it once.
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            again = torch.export.load(str(path)).module()

    def run(images: Images) -> dict:
        with torch.no_grad():
            return named(outputs, again(images))

    return run


def _ask_for_a_compiler() -> None:
    """AOTInductor's own word for a missing compiler comes late, and is a page."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        raise ConfigError("aot = true: no C++ compiler was found; install g++ or name one in CXX, or leave aot out")
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "probe.cpp"
        source.write_text("int main() { return 0; }\n", encoding="utf-8")
        command = [name, str(source), "-o", str(source.with_suffix(".so")), "-shared", "-fPIC"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            raise ConfigError(f"aot = true: {name} does not compile; name a C++ compiler in CXX, or leave aot out")


def _trace(graph: Graph, example: Images, path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        # torch.jit is kept for libtorch; its successor is to=program.
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(graph, (example,))
        torch.jit.save(traced, str(path), _extra_files={_ABOUT: json.dumps({"outputs": graph.outputs})})


def _program(graph: Graph, example: Images, path: Path, config: ExportConfig) -> None:
    program = torch.export.export(graph, (example,), dynamic_shapes=(shapes(config),))
    if config.aot:  # machine code for this kind of processor
        from torch._inductor import aoti_compile_and_package

        aoti_compile_and_package(program, package_path=str(path))
    else:
        torch.export.save(program, str(path), extra_files={_ABOUT: json.dumps({"outputs": graph.outputs})})


def shapes(config: ExportConfig) -> dict[int, Any] | None:
    """Axes of the images that may differ."""
    dynamic = torch.export.Dim.DYNAMIC
    return {"all": {0: dynamic, 2: dynamic, 3: dynamic}, "batch": {0: dynamic}, "none": None}[config.dynamic]
