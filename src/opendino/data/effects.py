# SPDX-License-Identifier: Apache-2.0
"""Flips, colour jitter, greyscale, blur and solarisation of a whole batch on its device, each view by its own draws.

The workers draw (`augment.Look`) and cut; `Effects` carries what was drawn beside the crops and does the rest in
float32, so nothing is rounded to 8 bits in between; the formulas are those of `photometric.py` for arrays. Which rows
an operation is for is known on the CPU, so nothing waits for the device. Read `collate.py` next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor

from opendino.data.augment import Look
from opendino.data.photometric import gaussian_kernel, line_shifts

CHUNK = 256
"""Views that are worked on at once: bounds the memory of what is in between."""

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_LUMA = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Effects:
    """What is still to be done to the views of a batch.

    Attributes:
        factors: of the blend in each of the four places of the jitter's order; 1 where nothing is blended.
        bases: whether that blend is with the mean grey, and whether with the pixel's own grey; neither is black.
        shifts: of the hue, circles.
        kernels: of the blurred views.
        rows: of the hue in each place of the order, of flips, greys, blurs and solarisations, one after the other.
        counts: rows of each of these.
    """

    factors: Float32[Tensor, "4 rows"]
    bases: Float32[Tensor, "2 4 rows"]
    shifts: Float32[Tensor, " rows"]
    kernels: Float32[Tensor, "blurred 9"]
    rows: Int64[Tensor, " n"]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, looks: Sequence[Look]) -> "Effects":
        """What these looks ask for, one view a row."""
        factors, bases = np.ones((4, len(looks)), np.float32), np.zeros((2, 4, len(looks)), np.float32)
        lists: list[list[int]] = [[] for _ in range(8)]
        for row, look in enumerate(looks):
            for place, which in enumerate(look.order):
                if which == _HUE:
                    lists[place].append(row)
                    continue
                factors[place, row] = look.factors[which]
                bases[0, place, row], bases[1, place, row] = which == _CONTRAST, which == _SATURATION
            for wanted, rows in zip((look.flip, look.gray, look.sigma, look.solarize), lists[4:], strict=True):
                if wanted:
                    rows.append(row)
        kernels = [gaussian_kernel(looks[row].sigma) for row in lists[6]]
        return cls(
            torch.from_numpy(factors),
            torch.from_numpy(bases),
            torch.tensor([look.factors[_HUE] for look in looks], dtype=torch.float32),
            torch.from_numpy(np.stack(kernels)) if kernels else torch.empty((0, 9)),
            torch.tensor([row for rows in lists for row in rows], dtype=torch.int64),
            tuple(len(rows) for rows in lists),
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> "Effects":
        """The same with every tensor changed, such as moved."""
        return replace(self, **{name: function(value) for name, value in vars(self).items() if name != "counts"})

    def __call__(self, images: Shaped[Tensor, "rows C H W"]) -> Float32[Tensor, "rows C H W"]:
        """The finished views, values 0..1.

        Args:
            images: uint8, or float32 in 0..1, on the device of these tensors.
        """
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
        if images.dtype == torch.uint8:
            pixels = pixels.div_(255)
        *hues, flips, grays, blurs, inverted = self.rows.split(self.counts)
        for place, rows in enumerate(hues):
            if self._blends(place):
                pixels = blend(pixels, self.factors[place], self.bases[:, place])
            if len(rows):
                pixels[rows] = turn_hue(pixels[rows], self.shifts[rows])
        if len(grays) and pixels.shape[1] == 3:
            pixels[grays] = luma(pixels[grays]).expand(-1, 3, -1, -1)
        if len(blurs):
            pixels[blurs] = blur_rows(pixels[blurs], self.kernels)
        if len(inverted) and pixels.shape[1] in (1, 3):
            pixels[inverted] = invert_light(pixels[inverted])
        if len(flips):
            pixels[flips] = pixels[flips].flip(-1)
        return pixels

    def _blends(self, place: int) -> bool:
        return len(self.shifts) > self.counts[place]  # else all rows turn their hue in this place


@dataclass(frozen=True)
class ChunkedEffects:
    """Effects of any number of views, `CHUNK` at a time."""

    chunks: tuple[Effects, ...]

    @classmethod
    def of(cls, looks: Sequence[Look]) -> "ChunkedEffects":
        """What these looks ask for, one view a row."""
        return cls(tuple(Effects.of(looks[first : first + CHUNK]) for first in range(0, len(looks), CHUNK)))

    def map(self, function: Callable[[Tensor], Tensor]) -> "ChunkedEffects":
        """The same with every tensor changed, such as moved."""
        return ChunkedEffects(tuple(chunk.map(function) for chunk in self.chunks))

    def __call__(self, images: Shaped[Tensor, "rows C H W"]) -> Float32[Tensor, "rows C H W"]:
        """The finished views, values 0..1."""
        if not self.chunks:
            return images.float()
        parts = images.split(CHUNK)
        return torch.cat([chunk(part) for chunk, part in zip(self.chunks, parts, strict=True)])


def luma(pixels: Float[Tensor, "rows 3 H W"]) -> Float[Tensor, "rows 1 H W"]:
    """How light each pixel is."""
    red, green, blue = pixels.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def blend(
    pixels: Float32[Tensor, "rows C H W"], factors: Float32[Tensor, " rows"], bases: Float32[Tensor, "2 rows"]
) -> Float32[Tensor, "rows C H W"]:
    """Base and factor times (pixel - base), kept in 0..1; base is black, the mean grey or the pixel's own.

    With another number of channels than 1 and 3 each channel has its own mean, and no pixel a grey.
    """
    to_mean, to_grey = (one.view(-1, 1, 1, 1) for one in bases)
    # A row that is blended with the grey it has itself stays as it is: what saturation does without colours.
    grey = luma(pixels) if pixels.shape[1] == 3 else pixels
    base = torch.addcmul(grey * to_grey, grey.mean(dim=(2, 3), keepdim=True), to_mean)
    return torch.lerp(base, pixels, factors.view(-1, 1, 1, 1)).clamp_(0, 1)


def turn_hue(pixels: Float32[Tensor, "rows C H W"], shifts: Float32[Tensor, " rows"]) -> Float32[Tensor, "rows C H W"]:
    """Turn the hue by a share of the circle; only 3 channels are colours, others stay as they are.

    See `photometric.hue_array`, whose formula this is.
    """
    if pixels.shape[1] != 3:
        return pixels
    value, low = pixels.amax(dim=1), pixels.amin(dim=1)
    chroma = value - low
    red, green, blue = pixels.unbind(dim=1)
    safe = torch.where(chroma == 0, 1.0, chroma)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sextant + 6 * shifts.view(-1, 1, 1)
    out = torch.empty_like(pixels)
    for channel, offset in enumerate((5, 3, 1)):
        place = (turned + offset) % 6
        share = torch.minimum(place, 4 - place).clamp_(0, 1)
        torch.addcmul(value, chroma, share, value=-1, out=out[:, channel])
    return out


def blur_rows(
    pixels: Float32[Tensor, "rows C H W"], kernels: Float32[Tensor, "rows 9"]
) -> Float32[Tensor, "rows C H W"]:
    """Gaussian blur with mirrored edges, each row by its own kernel, as two batched products of matrices."""
    down, across = (_blur_matrices(kernels, size) for size in pixels.shape[2:])
    return down[:, None] @ pixels @ across[:, None].mT


def invert_light(pixels: Float32[Tensor, "rows C H W"]) -> Float32[Tensor, "rows C H W"]:
    """Invert values of 128 / 255 and more."""
    return torch.where(pixels >= 128 / 255, 1 - pixels, pixels)


def _blur_matrices(kernels: Float32[Tensor, "rows 9"], size: int) -> Float32[Tensor, "rows size size"]:
    return (kernels @ _shifts(size, kernels.device)).view(-1, size, size)


@lru_cache(maxsize=16)
def _shifts(size: int, device: torch.device) -> Float32[Tensor, "9 squared"]:
    return torch.from_numpy(line_shifts(size)).to(device)
