# SPDX-License-Identifier: Apache-2.0
"""Trained heads that a graph takes along: which one a file holds is read off its names and shapes.

Read next: `layers/segmentation_head.py`, `layers/depth_head.py`, `layers/dpt.py`, `models/classifier.py`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from opendino.checkpoint._reading import plausible, read, read_json
from opendino.checkpoint.hub import Model
from opendino.errors import CheckpointError, ConfigError, ConversionError
from opendino.layers.depth_head import LinearDepthHead, layers_of
from opendino.layers.dpt import DPTHead
from opendino.layers.segmentation_head import SegmentationHead
from opendino.models.classifier import LinearClassifier
from opendino.models.vision_transformer import VisionTransformer

_MADE_WITH = "decode_head."
_CLASSIFIER = "linear_head."
_DPT_LAYERS = 4
_DPT_PATCHES = 3  # fewer leave its coarsest map a single patch, which exporters take for a special case


class PixelHead(nn.Module):
    """A head on maps of patches, with what it says brought to the pixels.

    Args:
        head: `SegmentationHead`, `LinearDepthHead` or `DPTHead`.
        blocks: numbers of the blocks whose maps it reads, counted from 0.
        norm: whether maps go through the final norm.
        limits: smallest and largest depth; None for classes.

    Attributes:
        name: of the output: "segmentation" or "depth".
        fewest: patches along a side of the smallest image that exports hold for.
    """

    def __init__(
        self, head: nn.Module, blocks: Sequence[int], *, norm: bool, limits: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        self.head, self.blocks, self.norm, self.limits = head, tuple(blocks), norm, limits
        self.fewest = _DPT_PATCHES if isinstance(head, DPTHead) else 1
        self.name = "segmentation" if limits is None else "depth"

    def forward(self, maps: list[tuple[Tensor, Tensor]], height: int, width: int) -> Tensor:
        """Logits [B, K, H, W], or depth [B, H, W] within its limits.

        Args:
            maps: of each block the patches [B, D, h, w] and CLS [B, D].
            height: of the images, pixels.
            width: of the images, pixels.
        """
        found = self.head([patches for patches, _ in maps] if self.limits is None else maps)
        pixels = F.interpolate(found, size=(height, width), mode="bilinear", align_corners=False)
        return pixels if self.limits is None else pixels[:, 0].clamp(*self.limits)


def with_head(
    backbone: VisionTransformer, path: Path, limits: tuple[float, float] | None
) -> tuple[Model, PixelHead | None]:
    """The model with the head of a file: a classifier, or the backbone and a head on its patches.

    Args:
        backbone: that the head was trained on.
        path: file of the head.
        limits: range of depths; None reads it from the results file beside the head.

    Raises:
        CheckpointError: the file cannot be read.
        ConversionError: it holds no such head, or one for another backbone.
        ConfigError: the range of depths is not known.
    """
    if not path.is_file():
        raise CheckpointError(f"head = {path}: there is no such file; name one that eval segment or depth wrote")
    content = read(path)
    inner = content.get("state_dict", content)
    content = {
        name: value for name, value in (inner if isinstance(inner, Mapping) else {}).items() if isinstance(name, str)
    }
    state = {name.removeprefix(_MADE_WITH): value for name, value in content.items() if isinstance(value, Tensor)}
    shapes = {name.removeprefix(_CLASSIFIER): value.shape for name, value in state.items()}
    wide = {"weight": 2, "conv_seg.weight": 4, "conv_depth.weight": 4, "conv_depth.head.4.weight": 4}
    kind = next((name for name, axes in wide.items() if len(shapes.get(name, ())) == axes), None)
    if kind is None:
        raise ConversionError(
            f"head = {path}: holds no head of ours ({', '.join(sorted(shapes)[:3]) or 'nothing'} ...); give a linear "
            "classifier, a segmentation head or a depth head"
        )
    if kind == "weight":
        return _classifier(backbone, path, state), None
    if kind == "conv_seg.weight":
        count = _layers(path, backbone, shapes[kind][1], 1)
        module: nn.Module = SegmentationHead(shapes[kind][1], shapes[kind][0])
        blocks = range(backbone.depth - count, backbone.depth)
        return backbone, PixelHead(_filled(module, state, path), blocks, norm=True)
    low, high, norm = _depth_settings(path, limits)
    if kind == "conv_depth.weight":
        count = _layers(path, backbone, shapes[kind][1], 2)
        module = LinearDepthHead(backbone.embed_dim, count, low, high, shapes[kind][0])
    else:
        count = _layers(path, backbone, _DPT_LAYERS * backbone.embed_dim, 1)
        module = DPTHead(backbone.embed_dim, low)
    filled = _filled(module, state, path)
    return backbone, PixelHead(filled, layers_of(backbone.depth, count), norm=norm, limits=(low, high))


def _classifier(backbone: VisionTransformer, path: Path, state: Mapping[str, Tensor]) -> LinearClassifier:
    plain = {name.removeprefix(_CLASSIFIER): value for name, value in state.items()}
    classes, width = plain["weight"].shape
    layers = _layers(path, backbone, width - backbone.embed_dim, 1)  # the last part is the mean patch
    model = LinearClassifier(backbone, classes, layers)
    _filled(model.linear_head, plain, path)
    return model.eval()


def _layers(path: Path, backbone: VisionTransformer, width: int, each: int) -> int:
    """How many features of the backbone, or pairs of them, a head of some width reads."""
    count, odd = divmod(width, each * backbone.embed_dim)
    if odd or not 1 <= count <= backbone.depth:
        raise ConversionError(
            f"head = {path}: reads {width} numbers, which are no features of a backbone of width "
            f"{backbone.embed_dim} and {backbone.depth} blocks; give the model that the head was trained on"
        )
    return count


def _filled(head: nn.Module, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The head with the weights of the file; counts of batches, which nothing reads here, may be missing."""
    own = head.state_dict()
    odd = sorted(name for name in own.keys() ^ state.keys() if not name.endswith("num_batches_tracked"))
    odd += [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if odd:
        raise ConversionError(
            f"head = {path}: is not a whole {type(head).__name__} for this backbone ({odd[0]} is missing, left over or "
            "of another shape); give the model that the head was trained on"
        )
    head.load_state_dict({**own, **state})
    return head.eval()


def _depth_settings(path: Path, limits: tuple[float, float] | None) -> tuple[float, float, bool]:
    """Range of depths, and whether maps go through the final norm: as in the results that eval wrote beside a head."""
    told: dict[str, Any] = {}
    beside = path.with_suffix(".json")
    if beside.is_file():
        told = read_json(beside)
    with plausible(beside):
        low, high = map(float, limits or told.get("data", {}).get("range") or (0, 0))
        norm = bool(told.get("config", {}).get("depth", {}).get("norm", False))
    if not 0 < low < high < math.inf:
        raise ConfigError(
            f"head = {path}: the range of its depths is not known; give depth_range=[LOW,HIGH] in the data's unit, "
            "such as [0.001,10] for NYU and [0.001,80] for KITTI"
        )
    return low, high, norm
