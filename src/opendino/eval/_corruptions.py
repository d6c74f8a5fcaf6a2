# SPDX-License-Identifier: Apache-2.0
"""Fifteen ways in which photographs go wrong, each in five severities; own implementations of the standard kinds.

Every function takes pixels [H, W, 3] in 0..1, a severity 1..5 and a source of random numbers. Lengths are meant for
images of 224 pixels and are scaled to the shorter side. Severities are the published ones; frost is drawn (the
published set lays photographs of ice over the image), so figures compare models here, not with published tables.

Source: Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions".
"""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from opendino.errors import ConfigError

Pixels = Float[np.ndarray, "_ _ 3"]
_PUBLISHED_SIDE = 224


def corrupt(image: Image.Image, kind: str, severity: int, seed: int) -> Image.Image:
    """One corruption of a colour image.

    Args:
        image: RGB.
        kind: a name of `KINDS`.
        severity: 1 to 5.
        seed: the same gives the same image.

    Raises:
        ConfigError: there is no such kind or severity.
    """
    if kind not in KINDS or not 1 <= severity <= 5:
        raise ConfigError(f"robust: {kind!r} of severity {severity}: choose one of {', '.join(KINDS)}, and 1 to 5")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    out = KINDS[kind](pixels, severity - 1, np.random.default_rng([seed, severity, *kind.encode()]))
    return Image.fromarray((out.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def gaussian_noise(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:
    """Noise of the sensor's electronics."""
    return x + rng.normal(0, [0.08, 0.12, 0.18, 0.26, 0.38][s], x.shape)


def shot_noise(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:
    """Noise of counted light."""
    photons = [60, 25, 12, 5, 3][s]
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:
    """Single values that are black or white."""
    hit = rng.random(x.shape) < [0.03, 0.06, 0.09, 0.17, 0.27][s]
    return np.where(hit, rng.integers(0, 2, x.shape), x)


def defocus_blur(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """A lens out of focus: the mean over a disc."""
    radius = _length(x, [3, 4, 6, 8, 10][s])
    return _filtered(x, _soft_disc(radius))


def glass_blur(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:
    """Frosted glass: pixels change places with near ones, between two blurs."""
    sigma, reach, rounds = [(0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)][s]
    out = _blurred(x, sigma)
    rows, columns = np.indices(x.shape[:2])
    for _ in range(rounds):
        moved = [grid + rng.integers(-reach, reach + 1, grid.shape) for grid in (rows, columns)]
        out = out[moved[0].clip(0, x.shape[0] - 1), moved[1].clip(0, x.shape[1] - 1)]
    return _blurred(out, sigma)


def motion_blur(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:
    """A moving camera: the mean along a line, fading to one end."""
    radius, sigma = [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)][s]
    radius, angle = max(round(_length(x, radius)), 1), rng.uniform(-np.pi / 4, np.pi / 4)
    steps = np.arange(radius + 1)
    weights = np.exp(-0.5 * (steps / max(_length(x, sigma), 0.5)) ** 2)
    out = np.zeros_like(x)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        out += weight * ndimage.shift(x, (step * np.sin(angle), step * np.cos(angle), 0), order=1, mode="nearest")
    return out


def zoom_blur(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """A camera that moves forward: the mean over enlargements about the centre."""
    end, step = [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)][s]
    factors = np.arange(1, end, step)
    return np.mean([_zoomed(x, factor) for factor in factors], axis=0)


def snow(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:
    """Flakes in motion over a paler picture."""
    mean, scale, threshold, length, keep = [(0.1, 3, 0.5, 10, 0.8), (0.2, 2, 0.5, 12, 0.7), (0.55, 4, 0.9, 12, 0.7),
                                            (0.55, 4.5, 0.85, 12, 0.65), (0.55, 2.5, 0.85, 12, 0.55)][s]  # fmt: skip
    flakes = _zoomed(rng.normal(mean, 0.3, x.shape[:2])[..., None].repeat(3, axis=2), scale)
    flakes[flakes < threshold] = 0
    flakes = motion_blur(flakes.clip(0, 1), min(s, 1), rng) if length else flakes
    grey = x.mean(axis=2, keepdims=True)
    pale = keep * x + (1 - keep) * np.maximum(x, grey * 1.5 + 0.5)
    return pale + flakes + flakes[::-1, ::-1]


def frost(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:
    """Ice on the window: bright ridges of a fractal, laid over the picture."""
    keep, amount = [(1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)][s]
    field = fractal(x.shape[:2], 1.6, rng)
    ridges = 1 - np.abs(2 * field - 1)
    ice = ndimage.gaussian_filter(ridges**4, 0.7)[..., None] * np.array([0.85, 0.95, 1.0])
    return keep * x + amount * ice


def fog(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:
    """Fog: a fractal of white, and less contrast under it."""
    amount, decay = [(1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)][s]
    high = x.max()
    return (x + amount * fractal(x.shape[:2], decay, rng)[..., None]) * high / (high + amount)


def brightness(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Too much light: the brightest colour of each pixel is raised, hue and saturation stay."""
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + [0.1, 0.2, 0.3, 0.4, 0.5][s], 1)
    return np.where(value > 0, x * raised / np.maximum(value, 1e-6), raised)


def contrast(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Too little contrast about each channel's mean."""
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * [0.4, 0.3, 0.2, 0.1, 0.05][s] + mean


def elastic_transform(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:
    """A rubber sheet: a smooth field of displacements."""
    strength, smooth = [(488, 170.8), (488, 19.52), (12.2, 2.44), (17.08, 2.44), (29.28, 2.44)][s]
    share = min(x.shape[:2]) / _PUBLISHED_SIDE
    sigma, reach = max(smooth * share, 0.3), strength * share
    fields = [reach * ndimage.gaussian_filter(rng.uniform(-1, 1, x.shape[:2]), sigma, truncate=3) for _ in range(2)]
    rows, columns = np.indices(x.shape[:2]).astype(np.float64)
    places = [rows + fields[0], columns + fields[1]]
    return np.stack(
        [ndimage.map_coordinates(x[..., c], places, order=1, mode="reflect") for c in range(x.shape[2])], axis=-1
    )


def pixelate(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Too few pixels, shown as squares."""
    share = [0.6, 0.5, 0.4, 0.3, 0.25][s]
    image = Image.fromarray((x * 255 + 0.5).astype(np.uint8))
    small = (max(int(image.width * share), 1), max(int(image.height * share), 1))
    return np.asarray(image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)) / 255.0


def jpeg_compression(x: Pixels, s: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Too small a file."""
    buffer = BytesIO()
    Image.fromarray((x * 255 + 0.5).astype(np.uint8)).save(buffer, "JPEG", quality=[25, 18, 15, 10, 7][s])
    return np.asarray(Image.open(buffer)) / 255.0


KINDS: dict[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression,
    )
}  # fmt: skip
"""The fifteen kinds, in the published order."""

ALEXNET_ERROR = {
    "gaussian_noise": 88.6, "shot_noise": 89.4, "impulse_noise": 92.3, "defocus_blur": 82.0, "glass_blur": 82.6,
    "motion_blur": 78.6, "zoom_blur": 79.8, "snow": 86.7, "frost": 82.7, "fog": 81.9, "brightness": 56.5,
    "contrast": 85.3, "elastic_transform": 64.6, "pixelate": 71.8, "jpeg_compression": 60.7,
}  # fmt: skip
"""AlexNet's errors on ImageNet-C in percent, which the published mean corruption error is relative to."""


def fractal(shape: tuple[int, int], decay: float, rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Smooth noise of many sizes between 0 and 1: octaves, each weaker by `decay` than the coarser."""
    total = np.zeros(shape)
    weight, cells = 1.0, 1
    while cells <= max(shape):
        coarse = rng.random((cells + 1, cells + 1))
        rows, columns = (np.linspace(0, cells, side) for side in shape)
        grid = np.meshgrid(rows, columns, indexing="ij")
        total += weight * ndimage.map_coordinates(coarse, grid, order=1)
        weight, cells = weight / decay, cells * 2
    span = total.max() - total.min()
    return (total - total.min()) / (span if span > 0 else 1)


def _length(x: Pixels, pixels: int | float) -> float:
    return pixels * min(x.shape[:2]) / _PUBLISHED_SIDE


def _blurred(x: Pixels, sigma: float) -> Pixels:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0))


def _soft_disc(radius: float) -> Float[np.ndarray, "k k"]:
    reach = int(np.ceil(radius)) + 1
    axis = np.arange(-reach, reach + 1)
    disc = (radius + 0.5 - np.hypot(axis[:, None], axis[None])).clip(0, 1)
    return disc / disc.sum()


def _filtered(x: Pixels, kernel: Float[np.ndarray, "k k"]) -> Pixels:
    return np.stack([ndimage.convolve(x[..., c], kernel, mode="reflect") for c in range(x.shape[2])], axis=-1)


def _zoomed(x: Pixels, factor: int | float) -> Pixels:
    """Enlarged about the centre and cut to the old size."""
    places = [(np.arange(side) - (side - 1) / 2) / factor + (side - 1) / 2 for side in x.shape[:2]]
    grid = np.meshgrid(*places, indexing="ij")
    return np.stack([ndimage.map_coordinates(x[..., c], grid, order=1, mode="nearest") for c in range(x.shape[2])], -1)
