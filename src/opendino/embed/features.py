# SPDX-License-Identifier: Apache-2.0
"""Images to named features: CLS, mean patch, registers and patch grids, of the last block or of any others.

Every model takes images whose sides are multiples of its patch. How an image becomes such a one is `fit`:

| `fit`     | the model sees                                                                        |
|-----------|---------------------------------------------------------------------------------------|
| `crop`    | the centre, after the shorter side was scaled to `resize`: the published way          |
| `pad`     | the whole image, its longer side scaled to `size`, black around it                    |
| `stretch` | the whole image, both sides scaled to `size`                                          |
| `whole`   | the whole image, its longer side about `size`, each side the nearest multiple of the patch |

Read next: `folder.py`.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from opendino.axes import Images
from opendino.checkpoint.hub import load_backbone
from opendino.data.crops import size_of
from opendino.data.decode import Decoded
from opendino.data.photo import Photo
from opendino.data.transforms import EvalTransform, centre
from opendino.errors import ConfigError
from opendino.eval._features import FeatureConfig, framing, place
from opendino.fast.optimize import fast_copy
from opendino.models.vision_transformer import VisionTransformer
from opendino.view.pca import patch_grid

_MOST_PATCHES = 512  # along a side; attention between more has no end
KINDS = ("cls", "patch_mean", "registers", "patches")


@dataclass(frozen=True)
class FeatureSettings:
    """Which features, and what the model sees.

    Attributes:
        features: of each layer: "cls", "patch_mean", "registers", "patches".
        layers: numbers of blocks, counted from 0, each passed through the final norm; none takes the last.
        fit: how an image becomes the model's input, see the head of this file.
        size: of the model's input, pixels, a multiple of the patch; None takes the published 224, or the model's own
            where that is smaller.
        resize: for "crop": shorter side before the cut, pixels; None takes what evaluation takes.
        normalize: L2-normalise each vector.
        precision: of the model's arithmetic; "int8" is for the fast copy alone, see `opendino.optimize`.
        merge: share of an image's patches that each block of the fast copy merges into others like them, 0 to 0.5
            (token merging); other features for less time, see `opendino.optimize`.
        optimize: on a CPU take the model's fast copy, see `opendino.optimize`; it needs memory for a second copy.
        device: "auto" takes a CUDA device where there is one.
    """

    features: tuple[str, ...] = ("cls",)
    layers: tuple[int, ...] = ()
    fit: Literal["crop", "pad", "stretch", "whole"] = "crop"
    size: int | None = None
    resize: int | None = None
    normalize: bool = False
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    merge: float = 0.0
    optimize: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in self.features:
            if name not in KINDS:
                close = difflib.get_close_matches(name, KINDS, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(KINDS)}"
                raise ConfigError(f"features = {name!r}: no such feature; {hint}")
        if not self.features or len(set(self.features)) < len(self.features):
            raise ConfigError(f"features = {list(self.features)}: name each feature wanted once, and at least one")
        if not 0 <= self.merge <= 0.5:
            raise ConfigError(f"merge = {self.merge}: give a share from 0 to 0.5, such as 0.07")
        if len(set(self.layers)) < len(self.layers):
            raise ConfigError(f"layers = {list(self.layers)}: name each block once")


class Embedder:
    """Pictures to features in two steps, so that one can be prepared while others are in the model.

    Args:
        backbone: moved to `settings.device` and put into evaluation mode.
        settings: which features.

    Attributes:
        names: of the features, in order.
        shapes: of each feature, such as [D] or [h, w, D]; h and w are 0 where they differ between images.
        size: (height, width) that the model sees, pixels; None for "whole".

    Raises:
        ConfigError: the model has no such layer, no registers, or cannot take the size.
    """

    def __init__(self, backbone: VisionTransformer, settings: FeatureSettings = FeatureSettings()) -> None:
        self.backbone, self.settings = backbone.eval(), settings
        place(backbone, FeatureConfig(device=settings.device))
        self.device = next(backbone.parameters()).device
        self.layers = settings.layers or (backbone.depth - 1,)
        _check(backbone, settings)
        self.side, self._resize = _framing(backbone, settings)
        self.size = None if settings.fit == "whole" else (self.side, self.side)
        if settings.precision == "int8" and (self.device.type != "cpu" or not settings.optimize):
            raise ConfigError("precision = int8: is for device=cpu and optimize=true; give bf16 or fp32")
        if settings.merge and (self.device.type != "cpu" or not settings.optimize):
            raise ConfigError(f"merge = {settings.merge}: is for device=cpu and optimize=true; leave it out")
        self._model = self.backbone
        if settings.optimize:
            self._model = fast_copy(self.backbone, settings.precision, settings.merge)
        grid = 0 if self.size is None else self.side // backbone.patch_size
        dim, shapes = backbone.embed_dim, {}
        for layer in self.layers:
            ending = f"_{layer}" if settings.layers else ""
            for kind in settings.features:
                shape = {"registers": (backbone.num_register_tokens, dim), "patches": (grid, grid, dim)}
                shapes[kind + ending] = shape.get(kind, (dim,))
        self.shapes: dict[str, tuple[int, ...]] = shapes
        self.names = tuple(shapes)

    def prepare(self, image: Decoded | Photo) -> Float32[Tensor, "C H W"]:
        """One picture as the model takes it.

        Raises:
            DataError: it has other channels than the model, or is a photograph that turns out to be damaged.
        """
        spec, fit, side = self.backbone.input_spec, self.settings.fit, self.side
        transform = EvalTransform(side, self._resize, spec.mean, spec.std, spec.channels)
        if fit == "crop":
            return transform(image)
        height, width = (side, side) if fit == "stretch" else image.size if isinstance(image, Photo) else size_of(image)
        if fit == "pad":
            scale = side / max(height, width)
            height, width = max(round(height * scale), 1), max(round(width * scale), 1)
        elif fit == "whole":
            h, w = patch_grid((height, width), self.backbone.patch_size, side)
            height, width = h * self.backbone.patch_size, w * self.backbone.patch_size
        fitted = transform.fit(image, height, width)
        return transform.to_tensor(centre(fitted, (side, side)) if fit == "pad" else fitted)

    @torch.no_grad()
    def __call__(self, images: Images) -> dict[str, Tensor]:
        """Features of prepared pictures of one size, float32 on the CPU, first axis the pictures.

        Args:
            images: [B, C, H, W].
        """
        images = images.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            taken = self._taken(images, sorted(self.layers))
        by_layer = dict(zip(sorted(self.layers), taken, strict=True))
        grid = [side // self.backbone.patch_size for side in images.shape[2:]]
        found = []
        for layer in self.layers:
            patches, cls, registers = (part.float() for part in by_layer[layer])
            parts = {"cls": lambda c=cls: c, "registers": lambda r=registers: r}
            parts |= {"patch_mean": lambda p=patches: p.mean(dim=1), "patches": lambda p=patches: p.unflatten(1, grid)}
            found += [parts[kind]() for kind in self.settings.features]
        if self.settings.normalize:
            found = [torch.nn.functional.normalize(one, dim=-1) for one in found]
        return {name: one.cpu() for name, one in zip(self.names, found, strict=True)}

    def _taken(self, images: Images, layers: list[int]) -> Sequence[tuple[Tensor, ...]]:
        """Patches, CLS and registers of each layer; no patches where no feature is made of them."""
        if {"patches", "patch_mean"} & {*self.settings.features}:
            taken = self._model.get_intermediate_layers(
                images, n=layers, return_class_token=True, return_register_tokens=True
            )
            return cast("Sequence[tuple[Tensor, ...]]", taken)
        leading = self._model.leading_tokens(images, layers)  # the last block does less
        return [(tokens[:, 1:1], tokens[:, 0], tokens[:, 1:]) for tokens in leading]

    def of(self, pictures: Sequence[Decoded | Photo]) -> list[dict[str, Tensor]]:
        """Features of a few pictures, whatever their sizes; one dictionary a picture."""
        prepared = [self.prepare(picture) for picture in pictures]
        out: list[dict[str, Tensor]] = [{} for _ in prepared]
        for places in same_shape(prepared):
            features = self(torch.stack([prepared[place] for place in places]))
            for row, place in enumerate(places):  # noqa: F402
                out[place] = {name: one[row] for name, one in features.items()}
        return out


def same_shape(prepared: Sequence[Float[Tensor, "_ _ _"] | None]) -> list[list[int]]:
    """Places of the pictures, None left out, in groups of one shape, in the order of the first of each."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for at, one in enumerate(prepared):
        if one is not None:
            groups.setdefault(tuple(one.shape), []).append(at)
    return list(groups.values())


@lru_cache(maxsize=1)
def open_embedder(model: str, settings: FeatureSettings) -> Embedder:
    """The embedder of a model by its name; opened once in each process.

    Raises:
        CheckpointError: the model cannot be opened.
        ConfigError: as `Embedder`.
    """
    return Embedder(load_backbone(model), settings)


def _check(backbone: VisionTransformer, settings: FeatureSettings) -> None:
    for layer in settings.layers:
        if not 0 <= layer < backbone.depth:
            raise ConfigError(
                f"layers = {list(settings.layers)}: the model has {backbone.depth} blocks; give numbers from 0 to "
                f"{backbone.depth - 1}"
            )
    if "registers" in settings.features and not backbone.num_register_tokens:
        raise ConfigError("features = registers: the model has none; ask for cls, patch_mean or patches")


def _framing(backbone: VisionTransformer, settings: FeatureSettings) -> tuple[int, int]:
    """Side of the model's input and shorter side before the cut."""
    patch, size = backbone.patch_size, settings.size
    if size is not None and (size < patch or size % patch) and settings.fit != "whole":
        lower = max(size // patch, 1) * patch
        raise ConfigError(
            f"size = {size}: is no multiple of the model's patch, {patch}; give {lower} or {lower + patch}"
        )
    if size is not None and size // patch > _MOST_PATCHES:
        raise ConfigError(f"size = {size}: makes more than {_MOST_PATCHES} patches along a side; give less")
    config = FeatureConfig(size=size, resize=settings.resize)
    if settings.fit != "crop":
        config = replace(config, resize=None)
    return framing(backbone.input_spec, patch, config)
