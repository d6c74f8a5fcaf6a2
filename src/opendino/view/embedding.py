# SPDX-License-Identifier: Apache-2.0
"""A map of a data set: thumbnails in the plane, images of like features near each other; borders tell the classes.

Read next: `_tsne.py` (the layout), `_drawing.py`.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from opendino.data.datasets import ImageDataset, open_dataset
from opendino.data.decode import Decoded
from opendino.errors import ConfigError, DataError
from opendino.models.vision_transformer import VisionTransformer
from opendino.view._drawing import Panel, PictureConfig, fitted, write
from opendino.view._tsne import tsne
from opendino.view.attention import as_input
from opendino.view.pca import place, principal_axes

_log = logging.getLogger(__name__)
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e6b422",
    "#56b4e9",
    "#444444",
    "#8a2be2",
    "#7a5c00",
    "#c00000",
)


@dataclass(frozen=True)
class EmbeddingConfig(PictureConfig):
    """How the map is made, beside what `PictureConfig` says.

    Attributes:
        out: PNG or HTML file.
        images: most images, evenly spread over the data set.
        method: "tsne", or "pca" for the first two components.
        perplexity: of "tsne", about the number of neighbours that count; lowered for few images.
        grid: move each image to a place of its own in a grid; else thumbnails overlap where features do.
        side: longer side of the map, pixels.
        thumb: longer side of a thumbnail, pixels; None fills its place in the grid, else about half the map.
        seed: of the starting positions of "tsne" where features are equal.
    """

    out: str = "embedding.png"
    images: int = 400
    method: Literal["tsne", "pca"] = "tsne"
    perplexity: float = 30.0
    grid: bool = False
    side: int = 1600
    thumb: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.thumb is not None and self.thumb < 1) or self.perplexity <= 0:
            raise ConfigError("thumb: give 1 or more; perplexity: a positive number")

    def thumb_of(self, images: int) -> int:
        """Longer side of a thumbnail where there are so many images, pixels."""
        place = self.side // math.ceil(math.sqrt(images))
        if self.grid:
            return min(self.thumb or place, place)
        return self.thumb or max(round(self.side / math.sqrt(2 * images)), 1)


def run(backbone: VisionTransformer, sources: Sequence[str], config: EmbeddingConfig) -> Path:
    """Make the map of one data set and write it.

    Raises:
        DataError: there is more than one source, or fewer than three of its images can be read.
    """
    if len(sources) != 1:
        raise DataError(f"view embedding: {len(sources)} sources were named; give one folder or data set")
    place(backbone, config.device)
    dataset = open_dataset(sources[0], channels=backbone.in_chans, value_range=config.value_range, orient=config.orient)
    thumbs, features, labels = _look(backbone, dataset, config)
    if len(thumbs) < 3:
        raise DataError(f"{sources[0]}: {len(thumbs)} images could be read; a map wants three or more")
    places = layout(torch.stack(features), config)
    picture = draw(thumbs, places, labels, config)
    lead = f"{len(thumbs)} images of {sources[0]}, CLS by {config.method}."
    return write(config.out, [[Panel(picture)]], "Map of features", lead)


def _look(
    backbone: VisionTransformer, dataset: ImageDataset, config: EmbeddingConfig
) -> tuple[list[Image.Image], list[Tensor], list[int]]:
    thumbs, features, labels = [], [], []
    rows = np.linspace(0, len(dataset) - 1, min(config.images, len(dataset))).round().astype(int)
    for row in map(int, rows):
        try:
            image = dataset.image(row)
        except (DataError, OSError) as error:
            _log.warning("skipped %s: %s", dataset.identify(row), error)
            continue
        thumbs.append(fitted(image, config.thumb_of(len(rows))))
        features.append(_cls(backbone, image, config.size or max(backbone.input_spec.size)))
        label = dataset.label(row)
        labels.append(-1 if label is None else label)
    return thumbs, features, labels


@torch.no_grad()
def _cls(backbone: VisionTransformer, image: Decoded, size: int) -> Float[Tensor, " D"]:
    pixels, _ = as_input(backbone, image, size)
    training = backbone.training
    (tokens,) = backbone.eval().leading_tokens(pixels.to(next(backbone.parameters()).device))
    backbone.train(training)
    return tokens[0, 0].float().cpu()


def layout(features: Float[Tensor, "n D"], config: EmbeddingConfig = EmbeddingConfig()) -> Float[np.ndarray, "n 2"]:
    """Places in the unit square."""
    if config.method == "tsne":
        plane = tsne(features, perplexity=config.perplexity, seed=config.seed)
    else:
        plane = principal_axes(features, 2)(features)
    low, high = plane.amin(dim=0), plane.amax(dim=0)
    places = ((plane - low) / (high - low).clamp(min=1e-12)).numpy().astype(np.float64)
    return to_grid(places) if config.grid else places


def to_grid(places: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Places of a square grid, one for each point, that are nearest to them in all.

    Source: linear assignment with squared distances.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    side = math.ceil(math.sqrt(len(places)))
    line = np.arange(side) / max(side - 1, 1)
    cells = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    points, chosen = linear_sum_assignment(cdist(places, cells, "sqeuclidean"))
    out = np.empty_like(places)
    out[points] = cells[chosen]
    return out


def draw(
    thumbs: Sequence[Image.Image],
    places: Float[np.ndarray, "n 2"],
    labels: Sequence[int] | Int[np.ndarray, " n"],
    config: EmbeddingConfig = EmbeddingConfig(),
) -> Image.Image:
    """Thumbnails at their places, on white."""
    side, thumb = config.side, config.thumb_of(len(thumbs))
    whole = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(whole)
    border = 3
    for picture, (x, y), label in zip(thumbs, places, labels, strict=True):
        small = picture.copy()
        small.thumbnail((thumb - 2 * border, thumb - 2 * border))
        left, top = round(x * (side - thumb)) + border, round(y * (side - thumb)) + border
        if config.grid:
            left, top = left + (thumb - small.width) // 2 - border, top + (thumb - small.height) // 2 - border
        if label >= 0:
            corner = left + small.width + border - 1, top + small.height + border - 1
            pen.rectangle([(left - border, top - border), corner], fill=_COLOURS[label % len(_COLOURS)])
        whole.paste(small, (left, top))
    return whole
