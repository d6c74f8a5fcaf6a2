# SPDX-License-Identifier: Apache-2.0
"""`export`: open a model, write it, open what was written by its own runtime, compare, and only then give it its name.

Read next: `graph.py` (what a graph gives), `heads.py` (heads on top), then a format: `program.py`, `onnx.py`.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from opendino.axes import Images
from opendino.checkpoint.hub import Model, load
from opendino.data.crops import resize
from opendino.data.datasets import open_dataset
from opendino.data.transforms import EvalTransform
from opendino.errors import CheckpointError, ConfigError, ConversionError
from opendino.export import FORMATS
from opendino.export.graph import Graph, backbone_of
from opendino.export.heads import with_head
from opendino.files import check_place, writing
from opendino.models.classifier import LinearClassifier

Runner = Callable[[Images], dict[str, Tensor]]
"""What was exported, opened again: images to named outputs."""

_SUFFIX = {"trace": ".pt", "program": ".pt2", "onnx": ".onnx"}
_LATEST = 23  # opset that PyTorch's exporter writes and onnxruntime runs
_TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2, "int8": 1.0}


@dataclass(frozen=True)
class ExportConfig:
    """What is exported, and how it is judged.

    Attributes:
        to: see `FORMATS`.
        size: (H, W) of the images in pixels, multiples of the patch; None takes the model's own.
        dynamic: what may differ from the example: "all" (number, height and width), "batch" (number) or "none". Where
            sizes are fixed, the position table is resized now and the graph holds no resizing.
        batch: images of the example; the number of images where nothing may differ.
        opset: of ONNX, 18 to 23.
        precision: of ONNX: "fp32"; "fp16", weights and sums of half the bytes; "int8", weights of matrix products
            quantized, activations as they come (onnxruntime's dynamic quantization).
        tolerance: largest absolute difference that is accepted; None takes 1e-4, 5e-2 for fp16, and for int8 1.
        images: image file, folder or data set to compare on, besides noise; none when empty.
        head: file of a trained head to put on top: a classifier, a segmentation head or a depth head, as `opendino eval
            segment | depth` or the official repository wrote it; none when empty.
        depth_range: (smallest, largest) depth of a depth head; None reads it from the results beside `head`.
        aot: of a program: compile it for this machine by AOTInductor.
    """

    to: str = "onnx"
    size: tuple[int, int] | None = None
    dynamic: Literal["all", "batch", "none"] = "all"
    batch: int = 2
    opset: int = 18
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    tolerance: float | None = None
    images: str = ""
    head: str = ""
    depth_range: tuple[float, float] | None = None
    aot: bool = False

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise ConfigError(f"to = {self.to!r}: no such format; choose one of {', '.join(FORMATS)}")
        if self.precision != "fp32" and self.to != "onnx":
            raise ConfigError(f"precision = {self.precision}: is for to=onnx; {self.to} is written in fp32")
        if self.aot and self.to != "program":
            raise ConfigError(f"aot = true: compiles a program; say to=program, or leave it out for {self.to}")
        if self.head and self.to == "hf":
            raise ConfigError(
                "head: goes on top of graphs (trace, program, onnx); the layout of to=hf has no place for it"
            )
        if self.tolerance is not None and not self.tolerance >= 0:  # also where it is not a number
            raise ConfigError(f"tolerance = {self.tolerance}: give 0 or more, such as 1e-4")
        if self.batch < 1 or not 18 <= self.opset <= _LATEST:
            raise ConfigError(f"batch: give 1 or more; opset: 18 to {_LATEST}")

    @property
    def allowed(self) -> float:
        """Largest difference that is accepted."""
        return _TOLERANCE[self.precision] if self.tolerance is None else self.tolerance


class Difference(NamedTuple):
    """What one comparison came to.

    Attributes:
        images: [B, C, H, W], shape of what was compared.
        of: the output that differs most.
        largest: absolute difference.
        kind: of images: "noise", "photographs", or "waves".
    """

    images: tuple[int, ...]
    of: str
    largest: float
    kind: str = "noise"


class Trial(NamedTuple):
    """Images to compare on.

    Attributes:
        kind: "noise", or "photographs" where `images=` named some.
        images: normalised.
    """

    kind: str
    images: Images


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: file or folder.
        outputs: names, in order.
        differences: of every comparison.
        notes: what its users have to know besides.
    """

    path: Path
    outputs: tuple[str, ...]
    differences: list[Difference]
    notes: tuple[str, ...] = ()


def export(source: str, out: str | Path, config: ExportConfig = ExportConfig()) -> Exported:
    """Write a model in a format that other programs run, after proving that they compute the same.

    Args:
        source: anything that `opendino.load` takes.
        out: file, or for "hf" a folder; must not exist.
        config: the format.

    Raises:
        ConfigError: a size that the model does not take, a name of another kind, a place that cannot be written, or a
            package that is missing.
        CheckpointError: the model cannot be opened, or the file not be written.
        ConversionError: what was written computes something else; it is removed.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out}: exists already; give another name, or remove it")
    check_place(out.parent, str(out))
    module = import_module(FORMATS[config.to][0])
    if config.to == "hf":
        return module.write(source, out, config)
    suffix = _SUFFIX[config.to]
    if out.suffix != suffix:
        raise ConfigError(f"{out}: the name of this format ends in {suffix}")
    model, head = load(source), None
    if config.head:
        model, head = with_head(backbone_of(model), Path(config.head), config.depth_range)
    fewest = 1 if head is None else head.fewest
    size = _size(model, config, fewest)
    fixed = model if config.dynamic == "all" else _baked(model, size)
    graph = Graph(fixed, head).eval()
    example = torch.randn(config.batch, model.input_spec.channels, *size, generator=torch.Generator().manual_seed(0))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        runner = module.write(graph, example, place / out.name, config)
        differences = [
            compare(graph, runner, one.images)._replace(kind=one.kind) for one in trials(model, size, config, fewest)
        ]
        worst = max(differences, key=lambda one: one.largest)
        if worst.largest > config.allowed:
            raise ConversionError(
                f"{out}: opened again, its {worst.of} of images {list(worst.images)} differ by {worst.largest:.1e}, "
                f"more than tolerance={config.allowed:g}; nothing was written"
            )
        with writing(out):
            for made in sorted(place.iterdir(), reverse=True):
                made.rename(out.with_name(made.name))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return Exported(out, graph.outputs, differences)


@torch.no_grad()
def compare(graph: Graph, runner: Runner, images: Images) -> Difference:
    """The largest difference of any output; infinite where one is missing, not a number, or of another shape."""
    wanted = dict(zip(graph.outputs, graph(images), strict=True))
    found = runner(images)
    worst = Difference(tuple(images.shape), graph.outputs[0], 0.0)
    for name, tensor in wanted.items():
        if name not in found or found[name].shape != tensor.shape:
            return Difference(tuple(images.shape), name, float("inf"))
        largest = float((found[name].float() - tensor.float()).abs().max())
        if math.isnan(largest):
            return Difference(tuple(images.shape), name, float("inf"))
        if largest > worst.largest:
            worst = Difference(tuple(images.shape), name, largest)
    return worst


def trials(model: Model, size: tuple[int, int], config: ExportConfig, fewest: int = 1) -> list[Trial]:
    """Noise and real images to compare on, of every number and size that the export promises.

    Args:
        model: what images are made for.
        size: of the example.
        config: what may differ from the example.
        fewest: patches along a side of the smallest image.
    """
    spec, patch = model.input_spec, backbone_of(model).patch_size
    random = torch.Generator().manual_seed(1)
    sizes = [size]
    if config.dynamic == "all":
        # Larger and wider, smaller and narrower, one patch more.
        small = [max(_half(side, patch), fewest * patch) for side in size]
        sizes += [(size[0] + 2 * patch, size[1] + 5 * patch), (small[0], small[1] + patch)]
    counts = (config.batch,) if config.dynamic == "none" else (1, config.batch + 1)
    noise = [torch.randn(count, spec.channels, *one, generator=random) for one in sizes for count in counts]
    out = [Trial("noise", images) for images in noise]
    for number, image in enumerate(_real(config.images, spec.channels)):
        fitted = sizes[number % len(sizes)]
        transform = EvalTransform(fitted, None, spec.mean, spec.std, spec.channels)
        one = transform.to_tensor(resize(image, *fitted))[None]
        one = one.expand(config.batch, -1, -1, -1).contiguous() if config.dynamic == "none" else one
        out.append(Trial("photographs", one))
    return out


def _real(source: str, channels: int) -> Sequence:
    if not source:
        return []
    dataset = open_dataset(source, channels=channels)
    return [dataset.image(row) for row in range(min(len(dataset), 4))]


def _half(side: int, patch: int) -> int:
    return max(side // (2 * patch), 1) * patch


def _size(model: Model, config: ExportConfig, fewest: int) -> tuple[int, int]:
    patch = backbone_of(model).patch_size
    size = config.size or (model.input_spec.size[0], model.input_spec.size[1])
    if any(side < patch or side % patch for side in size):
        near = [max(round(side / patch), 1) * patch for side in size]
        raise ConfigError(f"size = {list(size)}: sides must be multiples of the model's patch, {patch}; try {near}")
    if min(size) < fewest * patch:
        raise ConfigError(f"size = {list(size)}: this head wants {fewest * patch} pixels or more along each side")
    return size


def _baked(model: Model, size: tuple[int, int]) -> Model:
    if not isinstance(model, LinearClassifier):
        return model.bake(size).eval()
    fixed = LinearClassifier(model.backbone.bake(size), model.linear_head.out_features, model.layers, model.labels)
    fixed.linear_head = model.linear_head
    return fixed.eval()


def largest(differences: Sequence[Difference]) -> float:
    """Of all comparisons."""
    return max(one.largest for one in differences)


def told(differences: Sequence[Difference]) -> list[str]:
    """A line for each kind and size of images and each thing that was compared, with the largest difference."""
    worst: dict[tuple[str, tuple[int, ...], str], float] = {}
    for one in differences:
        key = one.kind, one.images[1:], one.of
        worst[key] = max(worst.get(key, 0.0), one.largest)
    return [
        f"{kind} of {' x '.join(map(str, shape))}: largest difference {found:.1e} ({of})"
        for (kind, shape, of), found in worst.items()
    ]


def named(outputs: Sequence[str], tensors: Sequence[Float[Tensor, "..."]]) -> dict[str, Tensor]:
    """Outputs by their names."""
    return dict(zip(outputs, tensors, strict=True))
