# SPDX-License-Identifier: Apache-2.0
"""The pass over a data set that every image-level protocol shares: images in, float32 features out.

Read next: `_data.py` (which images, which labels), then a protocol such as `knn.py`.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from opendino.data.datasets import ImageDataset
from opendino.data.transforms import EvalTransform
from opendino.distributed import all_reduce_sum, is_main, rank, world_size
from opendino.errors import ConfigError, DataError
from opendino.eval import _cache
from opendino.eval.adapters import Backbone
from opendino.fast.optimize import fast_copy
from opendino.machine import cores
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer

_log = logging.getLogger(__name__)

FeatureKind = Literal["cls", "patch_mean", "both"]

_TIGHT_BELOW = 128  # pixels; smaller pictures are framed tightly already, a centre crop would cut their subject


@dataclass(frozen=True)
class FeatureConfig:
    """How images become features.

    Attributes:
        size: side of the square that the model sees, pixels; None takes the published 224, or the model's own size
            where that is smaller. Rounded down to a multiple of the patch.
        resize: shorter side before the centre crop, pixels; None takes 8/7 of `size` (the published 256 for 224), and
            `size` itself below 128 pixels.
        batch_size: images a forward pass.
        workers: processes that decode; None chooses.
        precision: of the backbone's arithmetic; features are float32 either way.
        optimize: on a CPU take the backbone's fast copy, see `opendino.optimize`; it needs memory for a second copy.
        device: "auto" takes a CUDA device where there is one.
        progress: show a bar on a terminal.
        cache: folder where features are kept for the next protocol; empty or "off" for none. See `_cache.py`.
    """

    size: int | None = None
    resize: int | None = None
    batch_size: int = 64
    workers: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    optimize: bool = True
    device: str = "auto"
    progress: bool = True
    cache: str = ""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"features.batch_size = {self.batch_size}: give 1 or more images")


@dataclass(frozen=True)
class Features:
    """Features of the images that could be read, in the data set's order.

    Attributes:
        cls: final, layer-normalised CLS token, float32, on the CPU.
        patch_mean: mean of the final, layer-normalised patch tokens, float32, on the CPU; None if not asked for.
        blocks: CLS after each of the last blocks, normalised too, the last one equal to `cls`; where asked for.
        rows: position of each image in its data set.
        skipped: names of the images that could not be read.
    """

    cls: Float[Tensor, "n D"]
    patch_mean: Float[Tensor, "n D"] | None
    rows: Int[Tensor, " n"]
    skipped: tuple[str, ...] = ()
    blocks: Float[Tensor, "n L D"] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, kind: FeatureKind, *, normalize: bool) -> Float[Tensor, "n F"]:
        """Feature matrix of one kind.

        Args:
            kind: CLS, mean patch, or both side by side.
            normalize: L2-normalise; for "both" each half first, so that neither outweighs the other in a cosine.

        Raises:
            ConfigError: mean patches that were not asked for.
        """
        parts = [self.cls] if kind != "patch_mean" else []
        if kind != "cls":
            if self.patch_mean is None:
                raise ConfigError(f"features = {kind}: mean patches were not made; give extract patches=True")
            parts.append(self.patch_mean)
        if normalize:
            parts = [F.normalize(part, dim=-1) / math.sqrt(len(parts)) for part in parts]
        return torch.cat(parts, dim=-1)


def framing(spec: InputSpec, patch_size: int, config: FeatureConfig) -> tuple[int, int]:
    """Side of the model's input and shorter side before the centre crop, pixels.

    Raises:
        ConfigError: the size is smaller than a patch, or the resize smaller than the size.
    """
    wanted = config.size or min(max(spec.size), 224)
    size = wanted // patch_size * patch_size
    if size == 0:
        raise ConfigError(f"features.size = {wanted}: smaller than the model's patch, {patch_size}; give {patch_size}")
    resize = config.resize or (round(size * 8 / 7) if size >= _TIGHT_BELOW else size)
    if resize < size:
        raise ConfigError(f"features.resize = {resize}: smaller than the crop of {size}; give {size} or more")
    return size, resize


def place(backbone: Backbone, config: FeatureConfig) -> Backbone:
    """Move the backbone to the device that the settings name.

    Raises:
        ConfigError: there is no such device.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return backbone.to(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"features.device = {name}: cannot be used here ({reason}); try cpu") from None


class _Pictures(torch.utils.data.Dataset):
    """Rows of a data set as normalised tensors, None for an image that cannot be read."""

    def __init__(self, dataset: ImageDataset, transform: EvalTransform, rows: range) -> None:
        self.dataset, self.transform, self.rows = dataset, transform, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        row = self.rows[index]
        try:
            return row, self.transform(self.dataset.image(row)), ""
        except (DataError, OSError) as error:
            return row, None, str(error)


def _batches(pictures: _Pictures, config: FeatureConfig, device: torch.device) -> Iterator[list]:
    workers = config.workers
    if workers is None:
        # On a CPU the model itself keeps the cores busy.
        workers = min(8, cores()) if device.type == "cuda" else 0
    return iter(
        torch.utils.data.DataLoader(pictures, batch_size=config.batch_size, num_workers=workers, collate_fn=list)
    )


def extract(
    backbone: Backbone,
    dataset: ImageDataset,
    config: FeatureConfig = FeatureConfig(),
    *,
    what: str = "features",
    blocks: int = 1,
    patches: bool = True,
) -> Features:
    """Run every image of a data set through a backbone, in evaluation mode and without gradient.

    With a process group each process takes every world-th image and all of them return all features; every process
    has to call it.

    Args:
        backbone: stays where it is, and its mode is restored.
        dataset: images.
        config: how images become features, and where features are kept.
        what: name on the progress bar.
        blocks: of how many of the last blocks CLS is wanted; 1 gives only that of the last.
        patches: whether the mean patch is wanted; what goes to or comes from a cache has it all the same. Without it
            the last block does less, see `VisionTransformer.leading_tokens`.

    Raises:
        DataError: not one image could be read.
        ConfigError: a size that the model does not take.
    """
    size, resize = framing_of(backbone, config)
    key = _cache.key(backbone, dataset, size, resize, config.precision, blocks) if _cache.wanted(config.cache) else ""
    kept = _cache.read(config.cache, key) if key else None
    if kept is not None:
        _log.info("%s: %d features from %s", what, len(kept.tensors["rows"]), config.cache)
        return Features(**kept.tensors, skipped=kept.skipped)
    features = _run(backbone, dataset, config, what, blocks, patches or bool(key))
    if key and is_main():
        tensors = {name: getattr(features, name) for name in ("cls", "patch_mean", "rows", "blocks")}
        there = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        _cache.write(config.cache, key, there, features.skipped)
    return features


def _run(
    backbone: Backbone, dataset: ImageDataset, config: FeatureConfig, what: str, blocks: int, patches: bool
) -> Features:
    transform = transform_of(backbone, config)
    device = next(backbone.parameters()).device
    n, dim = len(dataset), backbone.embed_dim
    # CLS of the blocks, first to last, and behind them the mean patch of the last.
    found = torch.zeros(n, blocks + patches, dim)
    readable = torch.zeros(n, dtype=torch.int64)
    pictures = _Pictures(dataset, transform, range(rank(), n, world_size()))
    training = backbone.training
    backbone.eval()
    model = fast_copy(backbone, config.precision) if config.optimize else backbone
    try:
        for batch in _watch(
            _batches(pictures, config, device), math.ceil(len(pictures) / config.batch_size), what, config
        ):
            rows = [row for row, picture, _ in batch if picture is not None]
            _report_unreadable(dataset, batch)
            if rows:
                images = torch.stack([picture for _, picture, _ in batch if picture is not None])
                found[rows] = tokens_of(model, images.to(device), blocks, config.precision, patches).cpu()
                readable[rows] = 1
    finally:
        backbone.train(training)
    found, readable = (_gather(part, device) for part in (found, readable))
    kept = readable.nonzero().flatten()
    if len(kept) == 0:
        raise DataError(f"{what}: none of the {n} images could be read; see the lines above for the reason of each")
    skipped = tuple(dataset.identify(int(row)) for row in (readable == 0).nonzero().flatten())
    found = found[kept]
    classes, mean = found[:, :blocks], found[:, blocks].clone() if patches else None
    return Features(classes[:, -1].clone(), mean, kept, skipped, classes.clone() if blocks > 1 else None)


def framing_of(backbone: Backbone, config: FeatureConfig) -> tuple[int, int]:
    """`framing` of a backbone, which may take images of one size only.

    Raises:
        ConfigError: as `framing`, or another size than the one that the model takes.
    """
    if getattr(backbone, "fixed_size", False):
        size = max(backbone.input_spec.size)
        if config.size not in (None, size):
            raise ConfigError(f"features.size = {config.size}: this model takes images of {size} pixels only")
        config = replace(config, size=size)
    return framing(backbone.input_spec, backbone.patch_size, config)


def transform_of(backbone: Backbone, config: FeatureConfig) -> EvalTransform:
    """The way of an image into a backbone."""
    spec, (size, resize) = backbone.input_spec, framing_of(backbone, config)
    return EvalTransform(size=size, resize=resize, mean=spec.mean, std=spec.std, channels=spec.channels)


@torch.no_grad()
def tokens_of(
    backbone: Backbone, images: Tensor, blocks: int, precision: str, patches: bool = True
) -> Float[Tensor, "B LP D"]:
    """CLS of each of the last blocks, and behind them the mean patch of the last where it is wanted, in float32."""
    last = []  # patches of the last block
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        if not patches and isinstance(backbone, VisionTransformer):
            classes = [tokens[:, 0] for tokens in backbone.leading_tokens(images, blocks)]
        elif blocks == 1:
            tokens = backbone.forward_features(images)
            classes, last = [tokens["x_norm_clstoken"]], [tokens["x_norm_patchtokens"]]
        else:
            layers = backbone.get_intermediate_layers(images, n=blocks, return_class_token=True)
            classes, last = [cls for _, cls in layers], [layers[-1][0]]
    # In float32 also after bfloat16: a mean over a thousand patches needs the digits.
    means = [tokens.float().mean(dim=1) for tokens in last if patches]
    return torch.stack([*(cls.float() for cls in classes), *means], dim=1)


def _gather(part: Tensor, device: torch.device) -> Tensor:
    """Rows of all processes; each row is non-zero on one process only, so the sum copies it without rounding."""
    return part if world_size() == 1 else all_reduce_sum(part.to(device)).cpu()


def _report_unreadable(dataset: ImageDataset, batch: list) -> None:
    for row, picture, reason in batch:
        if picture is None:
            name = dataset.identify(row)
            _log.warning("skipped %s", reason if str(reason).startswith(name) else f"{name}: {reason}")


def _watch(batches: Iterator[list], total: int, what: str, config: FeatureConfig) -> Iterator[list]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not (config.progress and is_main() and console.is_terminal):
        return batches
    return iter(track(batches, description=what, total=total, console=console, transient=True))
