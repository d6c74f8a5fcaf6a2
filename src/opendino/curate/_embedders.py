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
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from opendino.data.decode import Decoded, match_channels
from opendino.data.transforms import EvalTransform
from opendino.errors import ConfigError, ModelError
from opendino.eval._features import FeatureConfig, place, tokens_of, transform_of
from opendino.eval.adapters import open_backbone
from opendino.fast.optimize import fast_if_it_pays
from opendino.neighbours.exact import device_of

NO_MODEL = "embed.model: names nothing; give a backbone, torchscript:FILE, or thumbnail"
_SIDE, _KEPT, _TILT, _FALL = 32, 12, 1.5, 5.0  # by benchmarks/curate_truth.py, see LOG.md


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
        return Embedder(_thumbnail, _even_frequencies)
    if config.model.startswith("torchscript:"):
        return _scripted(config)
    settings = FeatureConfig(config.size, config.resize, config.batch_size, device=config.device)
    backbone = place(open_backbone(config.model), settings)
    device = next(backbone.parameters()).device
    model = fast_if_it_pays(backbone, config.precision)

    def embed(images: Tensor) -> Tensor:
        tokens = tokens_of(model, images.to(device), 1, config.precision)
        parts = {"cls": [0], "patch_mean": [1], "both": [0, 1]}[config.feature]
        if len(parts) == 2:
            tokens = torch.nn.functional.normalize(tokens, dim=2)
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


def _even_frequencies(images: Float32[Tensor, "B S S"]) -> Float32[Tensor, "B D"]:
    """Cosine coefficients that a mirror leaves as they are, flattened as natural pictures need it.

    Horizontal frequencies of even number are symmetric. Amplitudes of natural pictures fall like 1 / frequency, so
    each is multiplied by more than its frequency, or all pictures would look alike; higher ones move too much when a
    margin is cut off, so they fade away. Brightness, frequency 0, is left out.
    """
    positions = torch.arange(_SIDE, dtype=torch.float64) + 0.5
    basis = torch.cos(torch.outer(torch.arange(_SIDE, dtype=torch.float64), positions) * torch.pi / _SIDE).float()
    rows, columns = basis[:_KEPT], basis[: 2 * _KEPT : 2]
    amplitudes = rows @ images @ columns.T
    frequency = torch.hypot(torch.arange(_KEPT)[:, None].float(), torch.arange(0, 2 * _KEPT, 2)[None].float())
    weight = frequency**_TILT * torch.exp(-0.5 * (frequency / _FALL) ** 2)
    return (amplitudes * weight).flatten(1)[:, 1:]


def stack(embedder: Embedder, pictures: Sequence[Decoded]) -> Float32[Tensor, "B D"]:
    """Features of pictures, in one pass."""
    return embedder.embed(torch.stack([embedder.prepare(picture) for picture in pictures]))
