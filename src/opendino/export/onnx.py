# SPDX-License-Identifier: Apache-2.0
"""ONNX by PyTorch's exporter, run again by onnxruntime; called by `shipping.py`."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from opendino.axes import Images
from opendino.errors import ConfigError, ConversionError
from opendino.export.graph import Graph
from opendino.export.program import shapes
from opendino.export.shipping import ExportConfig, Runner, named

INPUT = "images"


def write(graph: Graph, example: Images, path: Path, config: ExportConfig) -> Runner:
    """Write the graph and open it by onnxruntime.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is missing.
        ConversionError: PyTorch cannot write the model, or onnxruntime not open it.
    """
    _runtime()
    first = path if config.precision == "fp32" else path.with_name(f"fp32.{path.name}")
    half = config.precision == "fp16"
    # Half-precision graphs take and give float32; only what is inside is half.
    module = _Half(graph) if half else graph
    _export(module.eval(), example, path if half else first, graph.outputs, config)
    if config.precision == "int8":
        _quantize(first, path)
        for one in path.parent.glob(f"{first.name}*"):
            one.unlink()
    return opened(path, graph.outputs)


class _Half(torch.nn.Module):
    """A graph in half precision with float32 at both ends."""

    def __init__(self, graph: Graph) -> None:
        import copy

        super().__init__()
        self.inner = copy.deepcopy(graph).half()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(one.float() for one in self.inner(images.half()))


def _export(
    module: torch.nn.Module, example: Images, path: Path, outputs: tuple[str, ...], config: ExportConfig
) -> None:
    axes = shapes(config)
    quiet = contextlib.redirect_stdout(io.StringIO())  # the exporter prints its steps
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with quiet, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter about its own parts
            torch.onnx.export(
                module,
                (example,),
                str(path),
                dynamo=True,
                opset_version=config.opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=None if axes is None else (axes,),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever went wrong in errors of its own
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines()[0]
        raise ConversionError(f"{path.name}: PyTorch cannot write the model as ONNX ({reason})") from error


def _quantize(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # pyrefly: ignore[missing-import]

    with warnings.catch_warnings(), _silent(logging.getLogger()):
        warnings.simplefilter("ignore")
        quantize_dynamic(
            str(source), str(target), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"],
            extra_options={"DefaultTensorType": 1},
        )  # fmt: skip


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Nothing that is said to this very logger is told; onnxruntime gives its advice to the root."""
    nobody, none = logging.NullHandler(), lambda _record: False
    logger.addHandler(nobody)  # or logging would set up one of its own
    logger.addFilter(none)
    try:
        yield
    finally:
        logger.removeFilter(none)
        logger.removeHandler(nobody)


def opened(path: Path, outputs: tuple[str, ...]) -> Runner:
    """A file of this format by onnxruntime.

    Raises:
        ConfigError: onnxruntime is missing.
        ConversionError: it cannot open the file.
    """
    runtime = _runtime()
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # pybind errors of many kinds
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(f"{path.name}: onnxruntime cannot open what was written ({reason})") from error

    def run(images: Images) -> dict:
        found = session.run(list(outputs), {INPUT: images.numpy()})
        return named(outputs, [torch.from_numpy(one) for one in found])

    return run


def _runtime() -> Any:  # noqa: ANN401
    try:
        import onnx  # noqa: F401  # pyrefly: ignore[missing-import]
        import onnxruntime  # pyrefly: ignore[missing-import]
        import onnxscript  # noqa: F401  # pyrefly: ignore[missing-import]
    except ImportError as error:
        raise ConfigError(f"to = onnx: {error.name} cannot be imported; pip install 'opendino[onnx]'") from None
    return onnxruntime
