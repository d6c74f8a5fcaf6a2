# SPDX-License-Identifier: Apache-2.0
"""From an image to the class of every pixel: a head that learned, or patches that vote; `segment.py` measures them."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from opendino.data.crops import size_of
from opendino.data.decode import Decoded
from opendino.data.samplers import permute
from opendino.data.transforms import EvalTransform
from opendino.errors import ConfigError, DataError
from opendino.eval._dense import evaluating, feature_maps, slide, to_pixels
from opendino.eval._features import FeatureConfig, transform_of
from opendino.eval._masked import Masked
from opendino.eval._pace import Pace
from opendino.eval._segmentation import IGNORE, augmented, scaled, to_square
from opendino.eval.adapters import Backbone
from opendino.eval.knn import exactly, tally
from opendino.layers.segmentation_head import SegmentationHead
from opendino.neighbours.exact import nearest
from opendino.neighbours.matrix import InMemory
from opendino.optim.schedules import steps_of

_SCALES = (1.0, 1.32, 1.73, 2.28, 3.0)
_PUBLISHED: dict[str, dict[str, Any]] = {
    "linear": {"layers": 1, "crop": 512, "stride": 341, "short": 512, "long": 2048, "ratio": (0.5, 2.0)},
    "ms": {"layers": 4, "crop": 640, "stride": 320, "short": 640, "long": 10**8, "ratio": (1.0, 3.0)},
    "knn": {"layers": 1, "crop": 512, "stride": 341, "short": 512, "long": 2048, "ratio": (1.0, 1.0)},
}
_WARMUP_RATIO = 1e-6


@dataclass(frozen=True)
class HeadConfig:
    """The head and how it learns; None takes what is published for the kind of head.

    Attributes:
        head: linear, ms or knn.
        weights: file of a trained head, the published ones too; then nothing is trained and `data.train` not needed.
        layers: last layers, side by side.
        crop: side of crops and windows, pixels.
        stride: from window to window, pixels.
        short: shorter side of images, pixels; 0 keeps their size.
        long: limit of the longer side, pixels.
        ratio: limits of the random scale in training.
        iterations: steps.
        batch_size: crops a step.
        lr: peak learning rate of AdamW; falls linearly to 0.
        weight_decay: of AdamW.
        warmup: steps, or share of the run.
        k: neighbours of the knn head.
        temperature: of its votes.
        patches: most patches of its bank.
        seed: of everything random.
    """

    head: Literal["linear", "ms", "knn"] = "linear"
    weights: str = ""
    layers: int | None = None
    crop: int | None = None
    stride: int | None = None
    short: int | None = None
    long: int | None = None
    ratio: tuple[float, float] | None = None
    iterations: int = 40_000
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int | float = 0.0375
    k: int = 30
    temperature: float = 0.07
    patches: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            min(self.iterations, self.batch_size, self.k, self.patches) < 1
            or not self.temperature > 0
            or not self.lr > 0
        ):
            raise ConfigError(
                "segment: iterations, batch_size, k, patches, temperature and lr have to be positive; correct them"
            )
        if self.weights and self.head == "knn":
            raise ConfigError(f"segment.weights = {self.weights}: head=knn has no weights; choose linear or ms")
        steps_of(self.warmup, self.iterations, "segment.warmup")

    def value(self, name: str) -> int:
        """A number as it was set, or as published."""
        given = getattr(self, name)
        return _PUBLISHED[self.head][name] if given is None else given

    def limits(self) -> tuple[float, float]:
        """Smallest and largest random scale."""
        low, high = _PUBLISHED[self.head]["ratio"] if self.ratio is None else self.ratio
        return low, high


class Segmenter:
    """A backbone and settings, and the way from an image to classes; subclasses say what a patch is."""

    def __init__(self, backbone: Backbone, config: HeadConfig, features: FeatureConfig, classes: int) -> None:
        self.backbone, self.config, self.classes = backbone, config, classes
        self.precision = features.precision
        self.transform: EvalTransform = transform_of(backbone, features)
        self.device = next(backbone.parameters()).device
        count = self.config.value("layers")
        self.blocks = list(range(backbone.depth - count, backbone.depth))
        if self.blocks[0] < 0:
            raise ConfigError(f"segment.layers = {count}: the model gives features of {backbone.depth} layers only")

    def patches(self, maps: list[Tensor]) -> Float[Tensor, "B K h w"]:
        """Scores of every patch."""
        raise NotImplementedError

    def maps(self, images: Tensor) -> list[Float[Tensor, "B D h w"]]:
        """Frozen features of images."""
        found = feature_maps(self.backbone, images.to(self.device), self.blocks, precision=self.precision)
        return [patches for patches, _ in found]

    def scores(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Scores of every pixel of a window."""
        height, width = images.shape[2:]
        return to_pixels(self.patches(self.maps(images)), height, width, self.backbone.patch_size)

    def predict(self, image: Decoded, size: tuple[int, ...]) -> Int[Tensor, "H W"]:
        """Class of every pixel; `ms` averages probabilities over scales and flips."""
        total = None
        scales = _SCALES if self.config.head == "ms" else (1.0,)
        for scale in scales:
            pixels = self.transform.to_tensor(self._resized(image, scale))[None]
            for flipped in (False, True) if self.config.head == "ms" else (False,):
                seen = pixels.flip(3) if flipped else pixels
                scores = slide(self.scores, seen, self.config.value("crop"), self.config.value("stride"))
                scores = scores.flip(3) if flipped else scores
                scores = F.interpolate(scores, (size[0], size[1]), mode="bilinear", align_corners=False).softmax(dim=1)
                total = scores if total is None else total + scores
        if total is None:
            raise ConfigError("segment: no scale to predict at")
        return total[0].argmax(dim=0).cpu()

    def _resized(self, image: Decoded, scale: float) -> Decoded:
        short, long = self.config.value("short"), self.config.value("long")
        if not short:  # the image's own size
            if scale == 1:
                return image
            short, long = min(size_of(image)), max(size_of(image))
        return scaled(image, round(short * scale), round(long * scale))


class Linear(Segmenter):
    """A linear head on frozen maps."""

    def __init__(self, backbone: Backbone, config: HeadConfig, features: FeatureConfig, classes: int) -> None:
        super().__init__(backbone, config, features, classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.head = SegmentationHead(len(self.blocks) * backbone.embed_dim, classes).to(self.device)

    def patches(self, maps: list[Tensor]) -> Float[Tensor, "B K h w"]:
        """The head's logits."""
        return self.head(maps)

    def learn(self, train: Masked) -> None:
        """AdamW on the mean cross-entropy of counted pixels, with warm-up and a straight fall to 0."""
        config = self.config
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        warmup = steps_of(config.warmup, config.iterations, "segment.warmup")
        pace = Pace("segment", config.iterations)
        self.head.train()
        with evaluating(self.backbone):
            for step in range(config.iterations):
                images, masks = batch(train, self.transform, config, step)
                scores = self.scores(images)
                loss = F.cross_entropy(scores, masks.to(self.device), ignore_index=IGNORE)
                optimizer.param_groups[0]["lr"] = config.lr * rate(step, config.iterations, warmup)
                optimizer.zero_grad()
                if bool(torch.isfinite(loss)):  # a batch of nothing but ignored pixels has none
                    loss.backward()
                    optimizer.step()
                if pace.due(step):
                    pace.tell(step, f"loss {loss.item():.3f}")


class Neighbours(Segmenter):
    """Patches of training images that vote for the patches of another image."""

    def __init__(
        self, backbone: Backbone, config: HeadConfig, features: FeatureConfig, train: Masked, classes: int
    ) -> None:
        super().__init__(backbone, config, features, classes)
        share = max(self.config.patches // len(train), 1)
        rows_of, labels = [], []
        with evaluating(backbone):
            for index in range(len(train)):
                image, mask = train.both(index)
                picture = self.transform.to_tensor(self._resized(image, 1.0))
                grid = torch.cat(self.maps(picture[None]), dim=1)
                rows = grid[0].flatten(1).T
                classes_of = patch_classes(mask, grid.shape[2:], classes).flatten()
                kept = (classes_of >= 0).nonzero().flatten().numpy()
                rng = np.random.default_rng([self.config.seed, index])
                chosen = np.sort(rng.permutation(kept)[:share])
                rows_of.append(F.normalize(rows[chosen], dim=1).cpu())
                labels.append(classes_of[chosen])
        self.bank, self.labels = torch.cat(rows_of), torch.cat(labels)
        if not len(self.bank):
            raise DataError(f"{train.pairs.name}: no patch has a class that counts; see data.ignore")
        self.k = min(self.config.k, len(self.bank))
        self._rows = InMemory(self.bank)

    def patches(self, maps: list[Tensor]) -> Float[Tensor, "B K h w"]:
        """Log of the votes, so that the mean over windows and the softmax leave votes as they are."""
        grid = torch.cat(maps, dim=1)
        queries = F.normalize(grid.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
        similarities, found = nearest(queries.float(), self._rows, self.k, exactly(queries.device))
        labels = self.labels.cpu()[found].to(queries.device)
        votes = tally(similarities.to(queries.device), labels, [self.k], self.classes, self.config.temperature)[0]
        return (votes + 1e-6).log().unflatten(0, (grid.shape[0], *grid.shape[2:])).permute(0, 3, 1, 2)


def batch(train: Masked, transform: EvalTransform, config: HeadConfig, step: int) -> tuple[Tensor, Tensor]:
    """Crops and masks of one step; every random number is keyed by seed and place."""
    places = np.arange(step * config.batch_size, (step + 1) * config.batch_size, dtype=np.int64)
    rows = permute(places % len(train), len(train), config.seed, places // len(train))
    squares = []
    for place_in_run, row in zip(places.tolist(), rows.tolist(), strict=True):
        rng = np.random.default_rng([config.seed, place_in_run])
        image, mask = augmented(
            *train.both(row),
            short=config.value("short"),
            long=config.value("long"),
            ratio=config.limits(),
            crop=config.value("crop"),
            rng=rng,
        )
        squares.append(to_square(transform.to_tensor(image), mask, config.value("crop")))
    return torch.stack([picture for picture, _ in squares]), torch.stack([mask for _, mask in squares])


def rate(step: int, total: int, warmup: int) -> float:
    """Share of the peak learning rate at a step: a straight fall to 0, and at the start a straight rise to it.

    Source: mmcv's polynomial rule of power 1 with linear warm-up from 1e-6.
    """
    regular = 1 - step / total
    return regular * (1 - (1 - step / warmup) * (1 - _WARMUP_RATIO)) if step < warmup else regular


def patch_classes(mask: Int[np.ndarray, "H W"], grid: tuple[int, ...], classes: int) -> Int[Tensor, "h w"]:
    """The commonest class of the pixels under each patch, `IGNORE` where none counts."""
    held = torch.from_numpy(np.ascontiguousarray(mask))
    shares = F.one_hot(held.clamp(min=0), classes).permute(2, 0, 1).float() * (held >= 0)
    shares = F.adaptive_avg_pool2d(shares, (grid[0], grid[1]))
    return torch.where(shares.sum(dim=0) > 0, shares.argmax(dim=0), IGNORE)
