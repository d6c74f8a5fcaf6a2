# SPDX-License-Identifier: Apache-2.0
"""`export`: open a model, write it, open what was written by its own runtime, compare, and only then give it its name.

A graph takes normalised images [B, C, H, W] and gives `cls` [B, D], `patches` [B, N, D], and `registers` where there
are some; that of a classifier gives `logits` too. Read next: `program.py`, `onnx.py`.
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
from torch import Tensor, nn

from opendino.axes import Images
from opendino.checkpoint.hub import Model, load
from opendino.data.crops import resize
from opendino.data.datasets import open_dataset
from opendino.data.decode import decode
from opendino.data.transforms import EvalTransform
from opendino.errors import CheckpointError, ConfigError, ConversionError
from opendino.export import FORMATS
from opendino.files import writing
from opendino.models.classifier import LinearClassifier
from opendino.models.vision_transformer import VisionTransformer

Runner = Callable[[Images], dict[str, Tensor]]
"""What was exported, opened again: images to named outputs."""

_SUFFIX = {"trace": ".pt", "program": ".pt2", "onnx": ".onnx"}
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
        opset: of ONNX.
        precision: of ONNX: "fp32"; "fp16", weights and sums of half the bytes; "int8", weights of matrix products
            quantized, activations as they come (onnxruntime's dynamic quantization).
        tolerance: largest absolute difference that is accepted; None takes 1e-4, 5e-2 for fp16, and for int8 1.
        images: image file, folder or data set to compare on, besides noise; none when empty.
    """

    to: str = "onnx"
    size: tuple[int, int] | None = None
    dynamic: Literal["all", "batch", "none"] = "all"
    batch: int = 2
    opset: int = 18
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    tolerance: float | None = None
    images: str = ""

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise ConfigError(f"to = {self.to!r}: no such format; choose one of {', '.join(FORMATS)}")
        if self.precision != "fp32" and self.to != "onnx":
            raise ConfigError(f"precision = {self.precision}: is for to=onnx; {self.to} is written in fp32")
        if self.batch < 1 or self.opset < 18:
            raise ConfigError("batch: give 1 or more; opset: 18 or more")

    @property
    def allowed(self) -> float:
        """Largest difference that is accepted."""
        return _TOLERANCE[self.precision] if self.tolerance is None else self.tolerance


class Difference(NamedTuple):
    """What one comparison came to.

    Attributes:
        images: shape of what was compared.
        of: the output that differs most.
        largest: absolute difference.
    """

    images: tuple[int, ...]
    of: str
    largest: float


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: file or folder.
        outputs: names, in order.
        differences: of every comparison.
    """

    path: Path
    outputs: tuple[str, ...]
    differences: list[Difference]


class Graph(nn.Module):
    """The model as a function of one tensor to a tuple, for tracers.

    Args:
        model: a backbone or a classifier, in evaluation mode.

    Attributes:
        outputs: names of what it gives, in order.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model: Model = model
        backbone = backbone_of(model)
        self.has_registers = backbone.num_register_tokens > 0
        registers = ("registers",) if self.has_registers else ()
        self.outputs = ("cls", "patches", *registers, *(("logits",) if isinstance(model, LinearClassifier) else ()))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of their names."""
        model = self.model
        if not isinstance(model, LinearClassifier):
            found = backbone_of(model).forward_features(images)
            parts = [found["x_norm_clstoken"], found["x_norm_patchtokens"]]
            return tuple([*parts, found["x_norm_regtokens"]] if self.has_registers else parts)
        layers = model.backbone.get_intermediate_layers(
            images, n=model.layers, return_class_token=True, return_register_tokens=True
        )
        patches, cls, registers = layers[-1]
        # As LinearClassifier.forward, on the same pass.
        logits = model.linear_head(torch.cat([*(one[1] for one in layers), patches.mean(dim=1)], dim=-1))
        return (cls, patches, *([registers] if self.has_registers else []), logits)


def backbone_of(model: Model) -> VisionTransformer:
    """The model, or what its classifier stands on."""
    return model.backbone if isinstance(model, LinearClassifier) else model


def export(source: str, out: str | Path, config: ExportConfig = ExportConfig()) -> Exported:
    """Write a model in a format that other programs run, after proving that they compute the same.

    Args:
        source: anything that `opendino.load` takes.
        out: file, or for "hf" a folder; must not exist.
        config: the format.

    Raises:
        ConfigError: a size that the model does not take, a name of another kind, or a package that is missing.
        CheckpointError: the model cannot be opened, or the file not be written.
        ConversionError: what was written computes something else; it is removed.
    """
    out = Path(out)
    if out.exists():
        raise CheckpointError(f"{out}: exists already; give another name, or remove it")
    module = import_module(FORMATS[config.to][0])
    if config.to == "hf":
        return module.write(source, out, config)
    suffix = _SUFFIX[config.to]
    if out.suffix != suffix:
        raise ConfigError(f"{out}: the name of this format ends in {suffix}")
    model = load(source)
    size = _size(model, config)
    fixed = model if config.dynamic == "all" else _baked(model, size)
    graph = Graph(fixed).eval()
    example = torch.randn(config.batch, model.input_spec.channels, *size, generator=torch.Generator().manual_seed(0))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        runner = module.write(graph, example, place / out.name, config)
        differences = [compare(graph, runner, images) for images in trials(model, size, config)]
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


def trials(model: Model, size: tuple[int, int], config: ExportConfig) -> list[Images]:
    """Noise and real images to compare on, of every number and size that the export promises."""
    spec, patch = model.input_spec, backbone_of(model).patch_size
    random = torch.Generator().manual_seed(1)
    sizes = [size]
    if config.dynamic == "all":
        # Larger and wider, smaller and narrower, one patch more.
        sizes += [(size[0] + 2 * patch, size[1] + 5 * patch), (_half(size[0], patch), _half(size[1], patch) + patch)]
    counts = (config.batch,) if config.dynamic == "none" else (1, config.batch + 1)
    out = [torch.randn(count, spec.channels, *one, generator=random) for one in sizes for count in counts]
    for image in _real(config.images, spec.channels):
        transform = EvalTransform(size, None, spec.mean, spec.std, spec.channels)
        one = transform.to_tensor(resize(image, *size))[None]
        out.append(one.expand(config.batch, -1, -1, -1).contiguous() if config.dynamic == "none" else one)
    return out


def _real(source: str, channels: int) -> Sequence:
    if not source:
        return []
    path = Path(source)
    if path.is_file() and path.suffix.lower() not in (".txt", ".csv", ".tsv", ".parquet", ".pq"):
        return [decode(path, channels)]
    dataset = open_dataset(source, channels=channels)
    return [dataset.image(row) for row in range(min(len(dataset), 4))]


def _half(side: int, patch: int) -> int:
    return max(side // (2 * patch), 1) * patch


def _size(model: Model, config: ExportConfig) -> tuple[int, int]:
    patch = backbone_of(model).patch_size
    size = config.size or (model.input_spec.size[0], model.input_spec.size[1])
    if any(side < patch or side % patch for side in size):
        near = [max(round(side / patch), 1) * patch for side in size]
        raise ConfigError(f"size = {list(size)}: sides must be multiples of the model's patch, {patch}; try {near}")
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


def named(outputs: Sequence[str], tensors: Sequence[Float[Tensor, "..."]]) -> dict[str, Tensor]:
    """Outputs by their names."""
    return dict(zip(outputs, tensors, strict=True))
