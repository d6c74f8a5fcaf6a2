# SPDX-License-Identifier: Apache-2.0
"""The paper's picture: principal components of patch features, the first for the foreground, the next as colours.

All images share their components, so that equal colours mean equal features, across images too:

1. PCA over all patches of all images. The first component splits them in two, at Otsu's threshold.
2. Which half is the foreground? A component has no sign of its own, so a rule stands in: things are photographed in the
   middle, so the half that is rarer on the border of the images, compared with the rest of them, is the foreground.
3. PCA over the foreground patches; three components become red, green and blue, each stretched between two percentiles.

Read next: `report.py`, which puts such pictures on a page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from opendino.data.crops import resize, size_of
from opendino.data.datasets import open_dataset
from opendino.data.decode import Decoded, decode
from opendino.data.transforms import EvalTransform
from opendino.errors import ConfigError, DataError
from opendino.files import write_whole
from opendino.models.vision_transformer import VisionTransformer
from opendino.view import report

_DATA_SETS = (".txt", ".csv", ".tsv", ".parquet", ".pq", ".tar", ".yaml", ".yml")
_GAP, _MARGIN = 6, 18  # pixels between the two pictures of a pair, and around pairs
_COARSE = 48  # patches along the longer side: squares of fewer are blocks rather than a picture
_FINE = 32  # patches along the longer side that a map has where the image allows
_MOST = 256 * 256  # patches: beyond this no machine sees the end of it
_FEWEST = 8  # patches: fewer than this are no foreground to speak of


@dataclass(frozen=True)
class PcaConfig:
    """How the picture is made.

    Attributes:
        out: PNG file, or, where the name ends in .html, a page that holds the pictures.
        size: longer side of what the model sees, pixels; both sides are rounded to multiples of the patch, nothing is
            cut off. None takes twice the model's own size, for a finer grid than it was trained on, and where that
            makes fewer than 32 patches, 32 patches, or as many as the image has pixels for.
        images: most pictures that are taken from a folder or data set, evenly spread over it.
        joint: components over all images together; else each image has its own, and colours do not compare.
        background: "black", as in the paper, or "keep": the image itself, grey and dimmed.
        threshold: of the first component, from 0 (its smallest value) to 1 (its largest); None finds it by Otsu's
            method, a value below 0 makes everything foreground.
        components: of the second analysis, for red, green and blue, counted from 1.
        percentiles: values at or beyond these have no and full colour.
        smooth: colours and outline run smoothly between the patches; else each patch is a square. None takes smooth
            where there are fewer than 48 patches along the longer side.
        side: longer side of each picture on the sheet, pixels.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; None where the file says it.
        orient: whether the EXIF orientation is applied.
        device: "auto" takes a CUDA device where there is one.
    """

    out: str = "pca.png"
    size: int | None = None
    images: int = 12
    joint: bool = True
    background: Literal["black", "keep"] = "black"
    threshold: float | None = None
    components: tuple[int, int, int] = (1, 2, 3)
    percentiles: tuple[float, float] = (1.0, 99.0)
    smooth: bool | None = None
    side: int = 336
    value_range: tuple[float, float] | None = None
    orient: bool = True
    device: str = "auto"

    def __post_init__(self) -> None:
        if min(self.components) < 1:
            raise ConfigError(f"components = {list(self.components)}: components count from 1")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ConfigError(f"percentiles = {list(self.percentiles)}: give two rising numbers from 0 to 100")
        if min(self.images, self.side) < 1 or (self.size is not None and self.size < 1):
            raise ConfigError("images, side and size: give 1 or more")
        report.is_page(self.out)


class Axes(NamedTuple):
    """Principal axes.

    Attributes:
        mean: of the features, float64.
        directions: orthonormal columns, largest variance first, float64.
    """

    mean: Float[Tensor, " D"]
    directions: Float[Tensor, "D k"]

    def __call__(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n k"]:
        """Coordinates of features along the axes."""
        return (features.double() - self.mean) @ self.directions


class ColourMap(NamedTuple):
    """The colours of one image's patches.

    Attributes:
        colours: red, green and blue in 0..1.
        foreground: which patches they are meant for.
    """

    colours: Float[np.ndarray, "h w 3"]
    foreground: Bool[np.ndarray, "h w"]


def run(backbone: VisionTransformer, sources: Sequence[str], config: PcaConfig) -> Path:
    """Make the sheet of some images and write it.

    Args:
        backbone: of any size; moved to `config.device`.
        sources: image files, folders, or anything else that `open_dataset` opens.
        config: see `PcaConfig`.

    Returns:
        The file.

    Raises:
        DataError: a source cannot be opened, or an image not read.
        ConfigError: there is no such device, or the file cannot be written.
    """
    place(backbone, config.device)
    images = [image for source in sources for image in read(source, backbone.in_chans, config)]
    if not images:
        raise DataError("view pca: no image was named; give files, a folder or a data set")
    maps = colour_maps([patch_features(backbone, image, config.size) for image in images], config)
    pairs = [(shown(image), paint(image, colours, config)) for image, colours in zip(images, maps, strict=True)]
    path = Path(config.out)
    if report.is_page(path):
        return write_whole(path, _page(pairs), error=ConfigError)
    picture = sheet(pairs, config.side)
    return write_whole(path, lambda partial: picture.save(partial, "PNG"), error=ConfigError)


def read(source: str, channels: int, config: PcaConfig = PcaConfig()) -> list[Decoded]:
    """One image file, or up to `config.images` images of a data set, evenly spread over it.

    Raises:
        DataError: there is nothing there, or an image cannot be read.
    """
    path = Path(source)
    if path.is_file() and path.suffix.lower() not in _DATA_SETS:
        return [decode(path, channels, orient=config.orient, value_range=config.value_range)]
    dataset = open_dataset(source, channels=channels, value_range=config.value_range, orient=config.orient)
    rows = np.linspace(0, len(dataset) - 1, min(config.images, len(dataset))).round().astype(int)
    return [dataset.image(int(row)) for row in rows]


@torch.no_grad()
def patch_features(backbone: VisionTransformer, image: Decoded, size: int | None = None) -> Float[Tensor, "h w D"]:
    """Final, layer-normalised patch features of one image, float32 on the CPU.

    Args:
        backbone: put into evaluation mode for the call.
        image: of any size; its sides are scaled to the nearest multiples of the patch, nothing is cut off.
        size: longer side that the model sees, pixels; None takes `fine_size`.

    Raises:
        ConfigError: that makes more patches than any machine would see the end of.
    """
    h, w = grid_of(backbone, image, size)
    spec, patch = backbone.input_spec, backbone.patch_size
    transform = EvalTransform(size=(h * patch, w * patch), mean=spec.mean, std=spec.std, channels=spec.channels)
    pixels = transform.to_tensor(resize(image, h * patch, w * patch))[None].to(next(backbone.parameters()).device)
    training = backbone.training
    tokens = backbone.eval().forward_features(pixels)["x_norm_patchtokens"]
    backbone.train(training)
    return tokens[0].float().cpu().view(h, w, -1)


def grid_of(backbone: VisionTransformer, image: Decoded, size: int | None, most: int = _MOST) -> tuple[int, int]:
    """Rows and columns of patches that the model sees of an image.

    Args:
        backbone: whose patches are counted.
        image: of any size.
        size: longer side that the model sees, pixels; None takes `fine_size`.
        most: patches in all.

    Raises:
        ConfigError: there are more.
    """
    longer = size or fine_size(backbone, size_of(image))
    h, w = patch_grid(size_of(image), backbone.patch_size, longer)
    if h * w > most:
        fits = max(int(longer * math.sqrt(most / (h * w))) // backbone.patch_size, 1) * backbone.patch_size
        raise ConfigError(f"size = {longer}: makes {h} x {w} patches of this image; give size={fits} or less")
    return h, w


def fine_size(backbone: VisionTransformer, size: tuple[int, int]) -> int:
    """Longer side of what the model sees, pixels, that makes a map which is worth looking at.

    Twice the model's own; more where that makes fewer than 32 patches, but no more than the image has.

    Args:
        backbone: whose patches are counted.
        size: of the image, pixels.
    """
    return max(2 * max(backbone.input_spec.size), min(_FINE * backbone.patch_size, max(size)))


def patch_grid(size: tuple[int, int], patch: int, longer: int) -> tuple[int, int]:
    """Rows and columns of patches, one or more each, that keep the image's shape as well as whole patches can."""
    scale = longer / max(size) / patch
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def colour_maps(features: Sequence[Float[Tensor, "_ _ D"]], config: PcaConfig = PcaConfig()) -> list[ColourMap]:
    """Foreground and colours of the patches of some images, by the steps in the head of this file.

    Args:
        features: of the patches of each image, on its grid.
        config: see `PcaConfig`.
    """
    if not config.joint and len(features) > 1:
        return [colour_maps([one], config)[0] for one in features]
    flat = torch.cat([one.flatten(0, 1) for one in features])
    masks = foreground(features, config.threshold)
    chosen = torch.cat([mask.flatten() for mask in masks])
    axes = principal_axes(flat[chosen], max(config.components))
    scores = axes(flat)[:, [number - 1 for number in config.components]]
    low, high = _bounds(scores[chosen], config.percentiles)
    # A component without spread (fewer patches than components) is grey.
    spread = (high - low).clamp(min=1e-12)
    colours = torch.where(high > low, ((scores - low) / spread).clamp(0, 1), 0.5)
    parts = colours.split([mask.numel() for mask in masks])
    return [ColourMap(part.view(*mask.shape, 3).numpy(), mask.numpy()) for part, mask in zip(parts, masks, strict=True)]


def foreground(features: Sequence[Float[Tensor, "_ _ D"]], threshold: float | None = None) -> list[Bool[Tensor, "_ _"]]:
    """Patches of the foreground of each image; all of them where the split leaves next to nothing.

    Args:
        features: of the patches of each image, on its grid.
        threshold: see `PcaConfig`.
    """
    everything = [torch.ones(one.shape[:2], dtype=torch.bool) for one in features]
    flat = torch.cat([one.flatten(0, 1) for one in features])
    score = principal_axes(flat, 1)(flat)[:, 0]
    border = torch.cat([_border(*one.shape[:2]).flatten() for one in features])
    upper = score > otsu(score)
    if _share(upper, border) / _share(upper, ~border) > _share(~upper, border) / _share(~upper, ~border):
        score, upper = -score, ~upper
    if threshold is not None:
        upper = score > score.min() + threshold * (score.max() - score.min())
    if int(upper.sum()) < _FEWEST:
        return everything
    parts = upper.split([one.numel() for one in everything])
    return [part.view(one.shape) for part, one in zip(parts, everything, strict=True)]


def principal_axes(features: Float[Tensor, "n D"], k: int) -> Axes:
    """The k directions of largest variance; zeros where there are fewer than k dimensions.

    A direction's sign makes the third moment of the coordinates positive, so it depends neither on the machine nor on
    a rotation of the features.
    """
    x = features.double()
    mean = x.mean(dim=0)
    x = x - mean
    directions = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :k]
    skew = (x @ directions).pow(3).sum(dim=0)
    directions = directions * torch.where(skew < 0, -1.0, 1.0)
    return Axes(mean, torch.nn.functional.pad(directions, (0, k - directions.shape[1])))


def otsu(values: Float[Tensor, " n"]) -> float:
    """Threshold that splits values into two groups with the largest variance between their means.

    Source: Otsu 1979, over the values themselves in place of a histogram.
    """
    ordered = values.double().sort().values
    n = len(ordered)
    below = torch.arange(1, n, dtype=torch.float64)
    sums = ordered.cumsum(0)[:-1]
    gap = sums / below - (ordered.sum() - sums) / (n - below)
    best = int((below * (n - below) * gap.square()).argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


def paint(image: Decoded, colours: ColourMap, config: PcaConfig = PcaConfig()) -> Image.Image:
    """The colours at the image's shape, `config.side` pixels long, over black or over the dimmed image."""
    height, width = _fit(size_of(image), config.side)
    smooth = max(colours.foreground.shape) < _COARSE if config.smooth is None else config.smooth
    size, kind = (width, height), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    layer = Image.fromarray((colours.colours * 255).round().astype(np.uint8)).resize(size, kind)
    # Halfway between two patches lies the edge of a smooth foreground.
    mask = Image.fromarray(colours.foreground.astype(np.uint8) * 255).resize(size, kind)
    mask = mask.point(lambda value: 255 * (value > 127))
    if config.background == "black":
        ground = Image.new("RGB", size)
    else:
        grey = shown(image).resize(size, Image.Resampling.BICUBIC).convert("L")
        ground = grey.point(lambda value: value * 0.45).convert("RGB")
    return Image.composite(layer, ground, mask)


def shown(image: Decoded) -> Image.Image:
    """An image as people look at it: of other than three channels, the first three, or their mean in grey."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    pixels = image[..., :3] if image.shape[2] >= 3 else image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def sheet(pairs: Sequence[tuple[Image.Image, Image.Image]], side: int) -> Image.Image:
    """Pairs of pictures side by side, on white, in as many columns as make the whole about square."""
    columns = max(1, min(len(pairs), round(math.sqrt(len(pairs) / 2))))
    lines = [pairs[start : start + columns] for start in range(0, len(pairs), columns)]
    heights = [max(_fit((a.height, a.width), side)[0] for a, _ in line) for line in lines]
    cell = 2 * side + _GAP
    size = columns * cell + (columns + 1) * _MARGIN, sum(heights) + (len(lines) + 1) * _MARGIN
    whole = Image.new("RGB", size, "white")
    top = _MARGIN
    for line, tall in zip(lines, heights, strict=True):
        for column, pair in enumerate(line):
            left = _MARGIN + column * (cell + _MARGIN)
            for i, one in enumerate(pair):
                height, width = _fit((one.height, one.width), side)
                # Tiny pictures keep their pixels, large ones are filtered.
                kind = Image.Resampling.NEAREST if max(one.size) < side else Image.Resampling.BICUBIC
                # The two of a pair lean towards each other.
                x = left + (side - width if i == 0 else side + _GAP)
                whole.paste(one.resize((width, height), kind), (x, top + (tall - height) // 2))
        top += tall + _MARGIN
    return whole


def _page(pairs: Sequence[tuple[Image.Image, Image.Image]]) -> str:
    pictures = [picture for pair in pairs for picture in pair]
    words = [word for number in range(1, len(pairs) + 1) for word in (f"image {number}", "its patches")]
    grid = report.image_grid(pictures, alts=words, captions=words, columns=4, width=260, lossy=True)
    lead = (
        "The first principal component of the patch features finds the foreground, the next three colour it; where the "
        "images share the components, equal colours mean equal features."
    )
    return report.page("PCA of patch features", [grid], lead=lead)


def place(backbone: VisionTransformer, device: str) -> None:
    """Move the backbone to the device that a setting names.

    Raises:
        ConfigError: there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        backbone.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device = {device}: cannot be used here ({reason}); try cpu") from None


def _fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _border(h: int, w: int) -> Bool[Tensor, "h w"]:
    ring = torch.ones(h, w, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    return ring


def _share(part: Tensor, among: Tensor) -> float:
    """Share of a part among some patches; half where there are none, never exactly zero."""
    return (int((part & among).sum()) + 0.5) / (int(among.sum()) + 1)


def _bounds(scores: Tensor, percentiles: tuple[float, float]) -> tuple[Tensor, Tensor]:
    low, high = np.percentile(scores.numpy(), percentiles, axis=0)
    return torch.from_numpy(low), torch.from_numpy(high)
