# SPDX-License-Identifier: Apache-2.0
"""What the pictures of this room share: reading images, heat maps over them, rows of panels, PNG or HTML.

Used by `attention.py`, `match.py`, `similar.py` and `embedding.py`; `pca.py` has its own sheet of pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from opendino.data.crops import size_of
from opendino.data.decode import Decoded
from opendino.errors import ConfigError
from opendino.files import write_whole
from opendino.view import report
from opendino.view.pca import PcaConfig, read, shown

_GAP, _LINE, _LETTER = 8, 20, 13  # pixels between panels, for the words below them, and of their letters


@dataclass(frozen=True)
class PictureConfig:
    """What every picture of this room can be told.

    Attributes:
        size: longer side of what the model sees, pixels; both sides are rounded to multiples of the patch, nothing is
            cut off. None takes twice the model's own size, and where that makes fewer than 32 patches, 32 patches, or
            as many as the image has pixels for.
        images: most images that are taken from a folder or data set, evenly spread over it.
        side: longer side of each panel, pixels.
        smooth: maps run smoothly between the patches; else each patch is a square.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; None where the file says it.
        orient: whether the EXIF orientation is applied.
        device: "auto" takes a CUDA device where there is one.
    """

    size: int | None = None
    images: int = 8
    side: int = 336
    smooth: bool = True
    value_range: tuple[float, float] | None = None
    orient: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        if min(self.images, self.side) < 1 or (self.size is not None and self.size < 1):
            raise ConfigError("images, side and size: give 1 or more")
        report.is_page(getattr(self, "out", "x.png"))


class Panel(NamedTuple):
    """A picture and the words below it."""

    picture: Image.Image
    words: str = ""


def read_all(sources: Sequence[str], channels: int, config: PictureConfig) -> list[Decoded]:
    """The images of some files, folders and data sets.

    Raises:
        DataError: a source cannot be opened, or an image not read.
    """
    how = PcaConfig(images=config.images, value_range=config.value_range, orient=config.orient)
    return [image for source in sources for image in read(source, channels, how)]


def fitted(image: Decoded, side: int) -> Image.Image:
    """The image as people look at it, its longer side scaled to `side` pixels."""
    height, width = size_of(image)
    scale = side / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    # Tiny pictures keep their pixels.
    kind = Image.Resampling.NEAREST if max(height, width) < side / 2 else Image.Resampling.BICUBIC
    return shown(image).resize(size, kind)


def overlay(
    picture: Image.Image,
    values: Float[np.ndarray, "h w"],
    *,
    low: float,
    high: float,
    smooth: bool = True,
    strength: float = 0.75,
) -> Image.Image:
    """A map of patches as colours over a grey copy of the picture.

    Args:
        picture: of any size.
        values: one a patch.
        low: value without colour.
        high: value of full colour.
        smooth: see `PictureConfig`.
        strength: share of the colours where the map is highest; where it is lowest the picture shows through.
    """
    spread = max(high - low, 1e-12)
    grey = Image.fromarray(((values - low) / spread).clip(0, 1).astype(np.float32))
    kind = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    level = np.asarray(grey.resize(picture.size, kind)).clip(0, 1)
    share = strength * (0.35 + 0.65 * level[..., None])
    ground = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    return Image.fromarray((ground * (1 - share) + heat(level) * share).round().astype(np.uint8))


def heat(level: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Colours of values from 0 to 1, dark to bright, that keep their order in grey too."""
    from matplotlib import colormaps

    return (colormaps["inferno"](level)[..., :3] * 255).round().astype(np.uint8)


def sheet(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Rows of panels on white, with their words."""
    spoken = _LINE if any(panel.words for row in rows for panel in row) else 0
    width = max(sum(panel.picture.width + _GAP for panel in row) for row in rows) + _GAP
    heights = [max(panel.picture.height for panel in row) + spoken + _GAP for row in rows]
    whole = Image.new("RGB", (width, sum(heights) + _GAP), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(_LETTER)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for panel in row:
            whole.paste(panel.picture, (left, top))
            draw.text((left, top + panel.picture.height + 2), panel.words, fill="black", font=font)
            left += panel.picture.width + _GAP
        top += height
    return whole


def write(out: str, rows: Sequence[Sequence[Panel]], title: str, lead: str) -> Path:
    """The panels as PNG, or, where the name ends in .html, as a page that holds them.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = Path(out)
    if not report.is_page(path):
        picture = sheet(rows)
        return write_whole(path, lambda partial: picture.save(partial, "PNG"), error=ConfigError)
    sections = []
    for number, row in enumerate(rows, 1):
        words = [panel.words for panel in row]
        alts = [f"{title} {number}: {word or 'picture'}" for word in words]
        grid = report.image_grid([panel.picture for panel in row], alts=alts, captions=words, width=200, lossy=True)
        sections.append(report.section(f"{number}", grid))
    return write_whole(path, report.page(title, sections, lead=lead), error=ConfigError)
