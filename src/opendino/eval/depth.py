# SPDX-License-Identifier: Apache-2.0
"""Monocular depth on frozen features: a linear head on one or four layers, or the DPT decoder.

The range of depths is that of the data (`data.min_depth`, `data.max_depth`), for bins, losses and figures alike; it is
never taken from a file of weights. Images are padded to the patch; what is predicted is the mean over both sides.

Read next: `_depth.py` (losses and figures), `layers/depth_head.py`, `layers/dpt.py`, `_pixel_data.py` (the layouts).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from opendino import config as settings
from opendino.data.crops import size_of
from opendino.data.datasets import DecodeOptions
from opendino.distributed import all_reduce_sum, is_main, rank, world_size
from opendino.errors import ConfigError, DataError
from opendino.eval._dense import agree, evaluating, feature_maps, load_head, to_pixels
from opendino.eval._depth import errors, eval_crop, gradient_loss, learned, sig_loss, valid
from opendino.eval._depth_crops import cut_published, random_view
from opendino.eval._features import FeatureConfig, place, transform_of
from opendino.eval._pace import Pace
from opendino.eval._pixel_data import Pairs, open_pairs
from opendino.eval._results import Results, describe
from opendino.eval.adapters import Backbone
from opendino.files import save_tensors, write_whole
from opendino.layers.depth_head import LinearDepthHead, layers_of
from opendino.layers.dpt import DPTHead
from opendino.optim.schedules import cosine, steps_of

_PUBLISHED = {
    "nyu": {"min_depth": 1e-3, "max_depth": 10.0, "scale": 1000.0, "crop": "eigen"},
    "kitti": {"min_depth": 1e-3, "max_depth": 80.0, "scale": 256.0, "crop": "kitti_eigen"},
}
_WARM_STEPS = 100


@dataclass(frozen=True)
class DepthDataConfig:
    """Images with depth maps; see `_pixel_data.py` for the layouts. None takes what is published for `layout`.

    Attributes:
        train: folder with images/ and depth/, list of pairs, or Parquet file with image and depth.
        val: the same for held-out images.
        layout: nyu or kitti for their units, range and crops; empty finds the layout and needs the range.
        min_depth: smallest depth that counts, in the unit of the figures (metres).
        max_depth: largest depth that counts, and the last bin.
        scale: what numbers in depth files are divided by: 1000 for millimetres.
        crop: pixels that count in the held-out images: none, eigen (NYU), kitti_eigen or garg.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; None where the file says it.
        orient: whether the EXIF orientation is applied to images (maps have none).
    """

    train: str = ""
    val: str = ""
    layout: Literal["", "nyu", "kitti", "pairs", "parquet"] = ""
    min_depth: float | None = None
    max_depth: float | None = None
    scale: float | None = None
    crop: Literal["none", "eigen", "kitti_eigen", "garg"] | None = None
    value_range: tuple[float, float] | None = None
    orient: bool = False

    def limits(self) -> tuple[float, float]:
        """Range of depths.

        Raises:
            ConfigError: neither the settings nor the layout says it.
        """
        known = _PUBLISHED.get(self.layout, {})
        low = known.get("min_depth", 1e-3) if self.min_depth is None else self.min_depth
        high = known.get("max_depth") if self.max_depth is None else self.max_depth
        if high is None or not 0 < low < high:
            raise ConfigError(
                f"data.min_depth = {low}, data.max_depth = {high}: the range of depths is not known, or falls; give "
                "data.max_depth in the unit of the depth maps, or data.layout=nyu or kitti"
            )
        return float(low), float(high)

    def divisor(self) -> float:
        """What numbers in files are divided by."""
        return float(_PUBLISHED.get(self.layout, {}).get("scale", 1.0) if self.scale is None else self.scale)

    def counted(self) -> str:
        """Name of the crop that counts."""
        return str(_PUBLISHED.get(self.layout, {}).get("crop", "none") if self.crop is None else self.crop)


@dataclass(frozen=True)
class DepthHeadConfig:
    """The head and how it learns.

    Attributes:
        head: lin1, lin4 or dpt.
        weights: file of a trained head, the published ones too; then nothing is trained.
        norm: pass features through the final norm; published heads take them without.
        crop: (height, width) of training crops, pixels; None takes 416x544, KITTI's 352x704, or the image where it is
            smaller.
        iterations: steps.
        batch_size: crops a step.
        lr: peak learning rate of AdamW; a cosine to 0.
        weight_decay: of AdamW.
        warmup: steps, or share of the run.
        clip_grad: largest norm of the gradient.
        gradient_weight: of the loss of slopes beside the scale-invariant loss; published for DPT is 0.5.
        flip: average over both sides when predicting.
        seed: of everything random.

    Source: official configuration of the DPT head on NYU.
    """

    head: Literal["lin1", "lin4", "dpt"] = "lin4"
    weights: str = ""
    norm: bool = False
    crop: tuple[int, int] | None = None
    iterations: int = 38_400
    batch_size: int = 16
    lr: float = 1e-4
    weight_decay: float = 0.01
    warmup: int | float = 1 / 3
    clip_grad: float = 35.0
    gradient_weight: float = 0.5
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch_size) < 1 or not self.lr > 0 or not self.clip_grad > 0:
            raise ConfigError("depth: iterations, batch_size, lr and clip_grad have to be positive; correct them")
        steps_of(self.warmup, self.iterations, "depth.warmup")


@dataclass(frozen=True)
class DepthConfig:
    """Settings of `opendino eval depth`."""

    data: DepthDataConfig = field(default_factory=DepthDataConfig)
    depth: DepthHeadConfig = field(default_factory=DepthHeadConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)


class Estimator:
    """A frozen backbone and a head, and the way from an image to its depth.

    Args:
        backbone: not trained.
        config: head, range and features.

    Raises:
        ConfigError: no range, or a backbone of too few layers.
    """

    def __init__(self, backbone: Backbone, config: DepthConfig) -> None:
        self.backbone, self.config = backbone, config
        self.low, self.high = config.data.limits()
        self.transform = transform_of(backbone, config.features)
        self.device = next(backbone.parameters()).device
        count = 1 if config.depth.head == "lin1" else 4
        if backbone.depth < count:
            raise ConfigError(
                f"depth.head = {config.depth.head}: reads 4 layers, the model gives {backbone.depth}; use lin1"
            )
        self.layers = layers_of(backbone.depth, count)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.depth.seed)
            self.head: nn.Module = (
                DPTHead(backbone.embed_dim, self.low)
                if config.depth.head == "dpt"
                else LinearDepthHead(backbone.embed_dim, count, self.low, self.high)
            ).to(self.device)

    def depths(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
        """Depth of every pixel, not yet kept within the range."""
        height, width = images.shape[2:]
        norm, precision = self.config.depth.norm, self.config.features.precision
        maps = feature_maps(self.backbone, images.to(self.device), self.layers, norm=norm, precision=precision)
        return to_pixels(self.head(maps), height, width, self.backbone.patch_size)[:, 0]

    def predict(self, image: object) -> Float[Tensor, "H W"]:
        """Depth of an image within the range of the data; with `flip` the mean of both sides."""
        pixels = self.transform.to_tensor(image)[None]  # pyrefly: ignore[bad-argument-type]
        depth = self.depths(pixels)
        if self.config.depth.flip:
            depth = (depth + self.depths(pixels.flip(3)).flip(2)) / 2
        return depth[0].clamp(self.low, self.high).cpu()

    def learn(self, train: "Measured") -> None:
        """AdamW on both losses, with warm-up, a cosine to 0 and clipped gradients."""
        config = self.config.depth
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        warmup = steps_of(config.warmup, config.iterations, "depth.warmup")
        lr, pace = cosine(config.lr, 0.0, config.iterations, warmup), Pace("depth", config.iterations)
        self.head.train()
        with evaluating(self.backbone):
            for step in range(config.iterations):
                images, target = train.batch(step, self.transform)
                target = target.to(self.device)
                counted = learned(target, self.high)
                predicted = self.depths(images).clamp(min=self.low)
                if int(counted.sum()) < 2:
                    raise DataError(
                        f"{train.pairs.name}: a step has no depth above 0 and up to {self.high:g}; see data.scale "
                        "and data.max_depth"
                    )
                loss = sig_loss(predicted, target, counted, warm=step < min(_WARM_STEPS, config.iterations // 4))
                if config.gradient_weight:
                    loss = loss + config.gradient_weight * gradient_loss(predicted, target, counted)
                optimizer.param_groups[0]["lr"] = lr(step)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.head.parameters(), config.clip_grad)
                optimizer.step()
                if pace.due(step):
                    pace.tell(step, f"loss {loss.item():.3f}")


class Measured:
    """Images with depths in the unit of the figures.

    Args:
        pairs: images and maps.
        config: unit and layout.
        head: sizes of crops.
    """

    def __init__(self, pairs: Pairs, config: DepthDataConfig, head: DepthHeadConfig) -> None:
        self.pairs, self.config, self.head = pairs, config, head

    def __len__(self) -> int:
        return len(self.pairs)

    def both(self, index: int, *, training: bool) -> tuple:
        """Image and depth, cut as the layout's published protocol cuts them.

        Raises:
            DataError: their sizes differ, or one cannot be read.
        """
        image, depth = self.pairs.image(index), self.pairs.target(index).astype(np.float32) / self.config.divisor()
        if size_of(image) != depth.shape:
            raise DataError(
                f"{self.pairs.pairs[index].name}: the image has {size_of(image)} rows and columns and its depth map "
                f"{depth.shape}; they have to be of one size"
            )
        return cut_published(self.config.layout, image, depth, training=training)

    def batch(self, step: int, transform: object) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B H W"]]:
        """Random views of one step; every random number is keyed by seed and place."""
        config = self.head
        places = range(step * config.batch_size, (step + 1) * config.batch_size)
        views = [
            random_view(self, place, self.config.layout, config.crop, np.random.default_rng([config.seed, place]))
            for place in places
        ]
        images = [transform.to_tensor(image) for image, _ in views]  # pyrefly: ignore[missing-attribute]
        return torch.stack(images), torch.stack([torch.from_numpy(np.array(depth, order="C")) for _, depth in views])


def run(
    backbone: Backbone,
    config: DepthConfig,
    *,
    out: Path | None = None,
    source: Mapping[str, object] | None = None,
) -> Results:
    """Train a head (or read it), predict the held-out images, compare; every process of a group calls it.

    Every process trains the same head, and predicts with that of the main one; the held-out images are shared out.
    Figures are means over images.

    Args:
        backbone: moved to `config.features.device`; not trained.
        config: data, head and features.
        out: folder for the JSON file and the head, or None.
        source: where the model came from, for the record.

    Raises:
        ConfigError: a setting that does not fit, or no range of depths.
        DataError: images or maps that cannot be used.
    """
    start = time.perf_counter()
    place(backbone, config.features)
    estimator = Estimator(backbone, config)
    data = config.data
    options = DecodeOptions(backbone.input_spec.channels, data.orient, data.value_range)
    learns = not config.depth.weights
    for name in ("train", "val") if learns else ("val",):
        if not getattr(data, name):
            raise ConfigError(f"data.{name} is missing: depth needs images with depth maps; give data.{name}=FOLDER")
    val = Measured(open_pairs(data.val, "val", data.layout, options), data, config.depth)
    train = Measured(open_pairs(data.train, "train", data.layout, options), data, config.depth) if learns else None
    if train is None:
        load_head(estimator.head, config.depth.weights)
    else:
        estimator.learn(train)
        agree(estimator.head)
    estimator.head.eval()
    figures, images = measure(estimator, val)
    record = {
        **settings.to_dict(data),
        "train_images": 0 if train is None else len(train),
        "val_images": images,
        "range": [estimator.low, estimator.high],
    }
    seconds, model = time.perf_counter() - start, describe(backbone, source or {})
    results = Results("depth", figures, record, model, settings.to_dict(config), seconds)
    if out is not None and is_main():
        path = results.write(out)
        state = {name: tensor.cpu().contiguous() for name, tensor in estimator.head.state_dict().items()}
        write_whole(path.with_suffix(".safetensors"), lambda file: save_tensors(state, file), error=ConfigError)
    return results


def measure(estimator: Estimator, val: Measured) -> tuple[dict[str, float], int]:
    """Mean over images of every figure, and the number of images with a depth that counts.

    Raises:
        DataError: no image has one.
    """
    rows: list[list[float]] = []
    names: list[str] = list(errors(torch.ones(1), torch.ones(1)))
    with evaluating(estimator.backbone), torch.no_grad():
        for index in range(rank(), len(val), world_size()):
            image, depth = val.both(index, training=False)
            target = torch.from_numpy(np.array(depth, order="C"))
            counted = valid(target, estimator.low, estimator.high)
            counted &= eval_crop(val.config.counted(), *target.shape)
            if bool(counted.any()):
                predicted = estimator.predict(image)
                rows.append(list(errors(predicted[counted], target[counted]).values()))
    sums = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(names)).sum(dim=0)
    total = all_reduce_sum(
        torch.cat([sums, torch.tensor([float(len(rows))], dtype=torch.float64)]).to(estimator.device)
    )
    if total[-1] == 0:
        raise DataError(
            f"{val.pairs.name}: no pixel has a depth within {estimator.low:g} to {estimator.high:g}; see data.scale, "
            "data.max_depth and data.crop"
        )
    return dict(zip(names, (total[:-1] / total[-1]).tolist(), strict=True)), int(total[-1])
