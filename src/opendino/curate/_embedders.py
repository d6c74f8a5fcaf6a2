# SPDX-License-Identifier: Apache-2.0
"""What turns pictures into rows of features: a backbone, a TorchScript file, or a descriptor that needs no weights.

| `model`             | is                                                                                |
|---------------------|-----------------------------------------------------------------------------------|
| a name or a folder  | any backbone that `opendino eval` measures: ours, `timm:`, `hf:`, `open_clip:`     |
| `torchscript:FILE`  | a scripted network from images [B, 3, s, s] to [B, D], such as SSCD               |
| `thumbnail`         | low frequencies of the grey picture, mirrored or not: a copy detector without weights |
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from opendino.data.decode import Decoded, match_channels
from opendino.data.transforms import EvalTransform
from opendino.errors import ConfigError, ModelError
from opendino.eval._features import FeatureConfig, place, tokens_of, transform_of
from opendino.eval.adapters import open_backbone
from opendino.fast.optimize import fast_copy
from opendino.neighbours.exact import device_of

NO_MODEL = "embed.model: names nothing; give a backbone, torchscript:FILE, or thumbnail"
THUMBNAIL_VERSION = "thumbnail 2"
"""Another where the descriptor's numbers are others, so that old features are made again."""
_SIDE = 32
_MARGINS = (0.0, 0.05, 0.1, 0.15)  # cut off each side: the picture whole, and without what copies lose
_KEPT, _TILT, _FALL = 12, 1.5, 5.0  # frequencies of the half that a mirror leaves, and their weight
_TURNED, _TURNED_TILT, _TURNED_FALL = 6, 1.0, 4.0  # of the half that a mirror turns
_SHARE = 0.3  # of the turned half; all by benchmarks/curate_truth.py, see LOG.md


@dataclass(frozen=True)
class EmbedConfig:
    """How images become features.

    Attributes:
        model: see the table of this module.
        feature: of a backbone: CLS, mean patch, or both side by side.
        size: side of the model's input, pixels; None takes the model's own.
        resize: shorter side before the centre crop, pixels; None takes what evaluation takes.
        batch_size: images in a forward pass.
        precision: of the model's arithmetic.
        dtype: of the features on the disk.
        device: "auto" takes a CUDA device where there is one.
        threads: that decode beside the model.
        run_code: allow `torchscript:`, which runs whatever code the file holds.
    """

    model: str = ""
    feature: Literal["cls", "patch_mean", "both"] = "cls"
    size: int | None = None
    resize: int | None = None
    batch_size: int = 64
    precision: Literal["fp32", "bf16"] = "fp32"
    dtype: Literal["float32", "float16"] = "float32"
    device: str = "auto"
    threads: int = 2
    run_code: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.threads < 1:
            raise ConfigError("embed.batch_size and embed.threads: give 1 or more")


@dataclass(frozen=True)
class CopyConfig(EmbedConfig):
    """How the copy detector makes features of images; where none is named it is the one without weights."""

    model: str = "thumbnail"


@dataclass(frozen=True)
class Embedder:
    """Pictures to features in two steps.

    Attributes:
        prepare: one picture to the model's input.
        embed: stacked inputs to features, on the CPU.
    """

    prepare: Callable[[Decoded], Tensor]
    embed: Callable[[Tensor], Tensor]


@lru_cache(maxsize=2)
def open_embedder(config: EmbedConfig) -> Embedder:
    """The model that a setting names; opened once in each process.

    Raises:
        ConfigError: there is none, or it runs code and that is not allowed.
        ModelError: it gives no features.
    """
    if not config.model:
        raise ConfigError(NO_MODEL)
    if config.model == "thumbnail":
        return Embedder(_thumbnail, _without_mirror)
    if config.model.startswith("torchscript:"):
        return _scripted(config)
    settings = FeatureConfig(config.size, config.resize, config.batch_size, device=config.device)
    backbone = place(open_backbone(config.model), settings)
    device = next(backbone.parameters()).device
    model = fast_copy(backbone, config.precision)

    def embed(images: Tensor) -> Tensor:
        tokens = tokens_of(model, images.to(device), 1, config.precision, patches=config.feature != "cls")
        parts = {"cls": [0], "patch_mean": [1], "both": [0, 1]}[config.feature]
        if len(parts) == 2:
            tokens = F.normalize(tokens, dim=2)
        return tokens[:, parts].flatten(1).cpu()

    return Embedder(transform_of(backbone, settings), embed)


def _scripted(config: EmbedConfig) -> Embedder:
    path = Path(config.model.removeprefix("torchscript:"))
    if not config.run_code:
        raise ConfigError(
            f"{path}: a TorchScript file runs the code that is in it; if you trust its author, say embed.run_code=true "
            "(for the copy detector copy.run_code=true)"
        )
    device = device_of(config.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, for which there is no successor here
        try:
            model = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"{path}: cannot be opened as TorchScript ({reason})") from None

    def embed(images: Tensor) -> Tensor:
        with torch.no_grad():
            found = model(images.to(device))
        if not isinstance(found, Tensor) or found.ndim != 2:
            raise ModelError(f"{path}: gives no matrix [images, width]; export a model that does")
        return found.float().cpu()

    size = config.size or 288
    return Embedder(EvalTransform(size, config.resize or size), embed)


def _thumbnail(image: Decoded) -> Float32[Tensor, "S S"]:
    """The grey picture as a small square; its shape is given up, as copies change theirs."""
    grey = match_channels(image, 1)
    if isinstance(grey, np.ndarray):
        grey = Image.fromarray((grey[:, :, 0] * 255).astype(np.uint8))
    small = grey.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=4.0)
    return torch.from_numpy(np.asarray(small, dtype=np.float32))


def _without_mirror(images: Float32[Tensor, "B S S"]) -> Float32[Tensor, "B D"]:
    """Low cosine frequencies, so that a mirror image has the same features, and a cropped one nearly the same.

    Horizontal frequencies of even number are symmetric, so a mirror leaves their coefficients; those of odd number
    change their sign, all at once, so their products with each other stay. The features are the sum over the whole
    picture and its inner parts, as a copy without margin shares most of them with its original.
    """
    views = []
    for margin in _MARGINS:
        coefficients = _cosines(_KEPT, margin) @ images @ _cosines(2 * _KEPT, margin).T
        down, across = torch.arange(_KEPT)[:, None].float(), torch.arange(2 * _KEPT)[None].float()
        frequency = torch.hypot(down, across)
        left = coefficients[:, :, 0::2] * _weight(frequency[:, 0::2], _TILT, _FALL)
        turned = coefficients[:, :, 1::2] * _weight(frequency[:, 1::2], _TURNED_TILT, _TURNED_FALL)
        left = _rooted(left.flatten(1)[:, 1:])  # without frequency 0, the brightness
        turned = _rooted(turned[:, frequency[:, 1::2] <= _TURNED])
        first, second = torch.triu_indices(turned.shape[1], turned.shape[1])
        # So weighted, the dot product of two rows of products is the square of that of the rows.
        products = turned[:, first] * turned[:, second] * torch.where(first == second, 1.0, 2**0.5)
        views.append(torch.cat([left * (1 - _SHARE) ** 0.5, products * _SHARE**0.5], dim=1))
    return torch.stack(views).sum(dim=0)


def _rooted(coefficients: Float32[Tensor, "B n"]) -> Float32[Tensor, "B n"]:
    """Roots with the sign kept, of length 1: else a few large ones decide alone, and agree by chance."""
    return F.normalize(coefficients.sign() * coefficients.abs().sqrt(), dim=1)


def _cosines(kept: int, margin: float) -> Float32[Tensor, "k S"]:
    """Cosines of 0, 1, ... half waves across a line of pixels without its margins; a cut pixel counts in part."""
    first, length = _SIDE * margin, _SIDE * (1 - 2 * margin)
    pixels = torch.arange(_SIDE, dtype=torch.float64)
    inside = ((pixels + 1).clamp(max=first + length) - pixels.clamp(min=first)).clamp(min=0)
    waves = torch.outer(torch.arange(kept, dtype=torch.float64), pixels + 0.5 - first)
    return (torch.cos(waves * torch.pi / length) * inside / length).float()


def _weight(frequency: Float32[Tensor, "*n"], tilt: float, fall: float) -> Float32[Tensor, "*n"]:
    """Of coefficients: amplitudes of natural pictures fall like 1 / frequency, so each is multiplied by about that.

    Otherwise all pictures would look alike. High ones move too much when a margin is cut off, so they fade away.
    """
    return frequency**tilt * torch.exp(-0.5 * (frequency / fall) ** 2)


def stack(embedder: Embedder, pictures: Sequence[Decoded]) -> Float32[Tensor, "B D"]:
    """Features of pictures, in one pass."""
    return embedder.embed(torch.stack([embedder.prepare(picture) for picture in pictures]))
