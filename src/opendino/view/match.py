# SPDX-License-Identifier: Apache-2.0
"""The same parts in two images: pairs of patches that are each other's most similar, joined by lines.

Read next: `similar.py`, which asks for one patch; `_drawing.py`.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw
from torch import Tensor

from opendino.errors import ConfigError, DataError
from opendino.models.vision_transformer import VisionTransformer
from opendino.view._drawing import Panel, PictureConfig, fitted, read_all, write
from opendino.view.pca import foreground, patch_features, place

_GAP = 12  # pixels between the two images


@dataclass(frozen=True)
class MatchConfig(PictureConfig):
    """How the picture is made, beside what `PictureConfig` says.

    Attributes:
        out: PNG or HTML file.
        count: most pairs that are drawn.
        spacing: least distance between two pairs, in patches of the first image, so that they spread over it.
        foreground: leave out the background, as `pca.foreground` tells it from the two images together.
        threshold: least cosine of a pair.
    """

    out: str = "match.png"
    count: int = 30
    spacing: float = 2.0
    foreground: bool = True
    threshold: float = 0.0
    side: int = 560

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1 or self.spacing < 0:
            raise ConfigError("count: give 1 or more; spacing: 0 or more")


class Match(NamedTuple):
    """Two patches; places are fractions of the image, (x, y), of the patch's middle.

    Attributes:
        first: place in the first image.
        second: place in the second image.
        score: cosine of their features.
    """

    first: tuple[float, float]
    second: tuple[float, float]
    score: float


def run(backbone: VisionTransformer, sources: Sequence[str], config: MatchConfig) -> Path:
    """Draw the matches of each image with the first one.

    Raises:
        DataError: fewer than two images, or one that cannot be read.
    """
    place(backbone, config.device)
    images = read_all(sources, backbone.in_chans, config)
    if len(images) < 2:
        raise DataError(f"view match: {len(images)} image was named; give two or more, the first is matched with each")
    features = [patch_features(backbone, image, config.size) for image in images]
    rows = []
    for image, other in zip(images[1:], features[1:], strict=True):
        masks = foreground([features[0], other]) if config.foreground else [None, None]
        pairs = match(features[0], other, masks[0], masks[1])
        pairs = [pair for pair in pairs if pair.score >= config.threshold]
        kept = spread(pairs, config.count, config.spacing, max(features[0].shape[:2]))
        picture = draw(fitted(images[0], config.side), fitted(image, config.side), kept)
        words = f"{len(kept)} of {len(pairs)} mutual matches"
        words += f", cosine {kept[-1].score:.2f} to {kept[0].score:.2f}" if kept else ""
        rows.append([Panel(picture, words)])
    return write(config.out, rows, "Matches", "Patches that are each other's most similar.")


def match(
    first: Float[Tensor, "h w D"],
    second: Float[Tensor, "h2 w2 D"],
    first_mask: Bool[Tensor, "h w"] | None = None,
    second_mask: Bool[Tensor, "h2 w2"] | None = None,
) -> list[Match]:
    """Patches that are each other's nearest by cosine, the most similar pair first.

    Args:
        first: patch features of an image.
        second: of another.
        first_mask: patches that take part; None for all.
        second_mask: patches that take part; None for all.

    Source: best buddies, as in Amir et al. 2021, Deep ViT Features as Dense Visual Descriptors, section 4.
    """
    a, b = (F.normalize(one.flatten(0, 1).float(), dim=1) for one in (first, second))
    cosines = a @ b.T
    if first_mask is not None:
        cosines[~first_mask.flatten()] = -2
    if second_mask is not None:
        cosines[:, ~second_mask.flatten()] = -2
    forth, back = cosines.argmax(dim=1), cosines.argmax(dim=0)
    mutual = (back[forth] == torch.arange(len(a))).nonzero().flatten()
    scores = cosines[mutual, forth[mutual]]
    kept = scores > -2
    mutual, scores = mutual[kept], scores[kept]
    order = scores.argsort(descending=True, stable=True)
    return [
        Match(_middle(int(at), first.shape[:2]), _middle(int(forth[at]), second.shape[:2]), float(score))
        for at, score in zip(mutual[order], scores[order], strict=True)
    ]


def spread(pairs: Sequence[Match], count: int, spacing: float, patches: int) -> list[Match]:
    """The best pairs, none nearer to a better one than `spacing` patches in the first image.

    Args:
        pairs: best first.
        count: at most.
        spacing: in patches.
        patches: along the longer side of the first image.
    """
    kept: list[Match] = []
    for pair in pairs:
        gaps = [max(abs(a - b) for a, b in zip(pair.first, one.first, strict=True)) for one in kept]
        near = any(gap * patches < spacing for gap in gaps)
        if not near:
            kept.append(pair)
        if len(kept) == count:
            break
    return kept


def draw(first: Image.Image, second: Image.Image, pairs: Sequence[Match]) -> Image.Image:
    """The two images side by side, a line for each pair."""
    size = first.width + _GAP + second.width, max(first.height, second.height)
    whole = Image.new("RGB", size, "white")
    whole.paste(first, (0, 0))
    whole.paste(second, (first.width + _GAP, 0))
    pen = ImageDraw.Draw(whole)
    # Coloured by the place in the first image, so that neighbours have like colours.
    for pair in sorted(pairs, key=lambda pair: pair.score):
        colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(0.85 * pair.first[0], 0.85, 1.0))
        a = pair.first[0] * first.width, pair.first[1] * first.height
        b = first.width + _GAP + pair.second[0] * second.width, pair.second[1] * second.height
        pen.line([a, b], fill=colour, width=2)
        for x, y in (a, b):
            pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour, outline="black")
    return whole


def _middle(at: int, grid: Sequence[int]) -> tuple[float, float]:
    row, column = divmod(at, grid[1])
    return (column + 0.5) / grid[1], (row + 0.5) / grid[0]
