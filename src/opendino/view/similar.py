# SPDX-License-Identifier: Apache-2.0
"""Everything that is like one spot: the cosine of each patch with that of a point in the first image, as a heat map.

Read next: `match.py`, which joins patches of two images; `_drawing.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from opendino.errors import ConfigError, DataError
from opendino.models.vision_transformer import VisionTransformer
from opendino.view._drawing import Panel, PictureConfig, fitted, overlay, read_all, write
from opendino.view.pca import patch_features, place


@dataclass(frozen=True)
class SimilarConfig(PictureConfig):
    """How the picture is made, beside what `PictureConfig` says.

    Attributes:
        out: PNG or HTML file.
        points: x and y of spots in the first image, as fractions of its width and height from the upper left; a row of
            panels each. None takes the middle.
        low: cosine without colour, the same in all images.
    """

    out: str = "similar.png"
    points: tuple[tuple[float, float], ...] = ((0.5, 0.5),)
    low: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for point in self.points:
            if not all(0 <= part <= 1 for part in point):
                raise ConfigError(f"points: {list(point)} is no point of the image; give x and y from 0 to 1")
        if not self.points or not -1 <= self.low < 1:
            raise ConfigError("points: give one or more; low: a cosine below 1")


def run(backbone: VisionTransformer, sources: Sequence[str], config: SimilarConfig) -> Path:
    """Make a row of panels for each point and write them.

    Raises:
        DataError: no image, or one that cannot be read.
    """
    place(backbone, config.device)
    images = read_all(sources, backbone.in_chans, config)
    if not images:
        raise DataError("view similar: no image was named; give files, a folder or a data set")
    features = [patch_features(backbone, image, config.size) for image in images]
    pictures = [fitted(image, config.side) for image in images]
    rows = []
    for point in config.points:
        maps = similarity(features, point)
        panels = [Panel(_marked(pictures[0], point), f"the spot at {point[0]:g}, {point[1]:g}")]
        for picture, cosines in zip(pictures, maps, strict=True):
            shown = overlay(picture, cosines.numpy(), low=config.low, high=1.0, smooth=config.smooth)
            panels.append(Panel(shown, f"cosine up to {float(cosines.max()):.2f}"))
        rows.append(panels)
    return write(config.out, rows, "Similar patches", "The cosine of every patch with that at the marked spot.")


def similarity(features: Sequence[Float[Tensor, "_ _ D"]], point: tuple[float, float]) -> list[Float[Tensor, "_ _"]]:
    """Cosine of every patch of some images with the patch at a point of the first.

    Args:
        features: of the patches of each image, on its grid.
        point: x and y as fractions of width and height.
    """
    h, w = features[0].shape[:2]
    query = features[0][min(int(point[1] * h), h - 1), min(int(point[0] * w), w - 1)]
    return [F.cosine_similarity(one.float(), query.float(), dim=-1) for one in features]


def _marked(picture: Image.Image, point: tuple[float, float]) -> Image.Image:
    marked = picture.copy()
    x, y = point[0] * picture.width, point[1] * picture.height
    r = max(picture.width, picture.height) / 40
    pen = ImageDraw.Draw(marked)
    pen.ellipse([x - r, y - r, x + r, y + r], outline="black", width=4)
    pen.ellipse([x - r, y - r, x + r, y + r], outline="yellow", width=2)
    return marked
