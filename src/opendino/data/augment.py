# SPDX-License-Identifier: Apache-2.0
"""Multi-crop augmentation: two global and several local views of one image, by the published recipe.

What happens to a view is drawn first (`MultiCrop.draw`) and then done: here by Pillow, in `fast.py` by OpenCV, and
for its colours in `effects.py` on the device. `photometric.py` holds the colour operations, `crops.py` the geometry;
read `collate.py` next.

Images of 1 or 3 channels get the whole recipe. With any other number of channels there is no colour: crops, flips,
brightness, contrast (each channel about its own mean) and blur apply; saturation, hue, greyscale and solarisation
do nothing.
"""

import math
from dataclasses import dataclass
from itertools import permutations
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from opendino.config import check_numbers
from opendino.data import photometric
from opendino.data.crops import DRAWS, Box, cut, flip, pixels_of, random_box, resize, size_of
from opendino.data.decode import Decoded, match_channels
from opendino.errors import ConfigError

_BLUR = {"effective": (0.0, 0.9, 0.5), "paper": (1.0, 0.1, 0.5)}
_AMOUNTS = dict.fromkeys(("flip", "jitter", "gray", "solarize"), 1.0)
_AMOUNTS |= {"brightness": 100.0, "contrast": 100.0, "saturation": 100.0, "hue": 0.5}
_RANGES = {"global_scale": 1.0, "local_scale": 1.0, "aspect": 100.0, "blur_sigma": 100.0}
_SIZES = {"global_size": (1, 2**16), "local_size": (1, 2**16), "local_number": (0, 1000), "fixed_views": (0, 2**31)}
_SIZES |= {"mixed_sizes": (1, 2**16), "early_size": (0, 2**16), "early_until": (0, math.inf)}
_STATISTICS = {"mean": (-math.inf, math.inf), "std": (1e-12, math.inf)}
_ORDERS = list(permutations(range(4)))
_ROW = DRAWS + 11  # uniform numbers that one view takes


@dataclass(frozen=True)
class CropsConfig:
    """The views of one image.

    Attributes:
        global_size: side of the global crops, pixels; a multiple of the patch size.
        global_scale: smallest and largest share of the image's area in a global crop.
        local_size: side of the local crops, pixels; a multiple of the patch size.
        local_scale: smallest and largest share of the image's area in a local crop.
        local_number: local crops of an image; 0 for none.
        aspect: smallest and largest width over height of the cut rectangle.
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter.
        brightness: jitter draws its factor from 1 - brightness to 1 + brightness.
        contrast: likewise.
        saturation: likewise.
        hue: jitter draws its shift from -hue to hue, in full circles; 0 to 0.5.
        gray: probability of greyscale.
        blur: probabilities of Gaussian blur in the first global, second global and local crops: "effective"
            (0, 0.9, 0.5) as the released weights were trained, "paper" (1, 0.1, 0.5) as the paper declares, or
            "none".
        blur_sigma: smallest and largest standard deviation of the blur, pixels.
        solarize: probability of solarisation in the second global crop.
        mean: of each channel, for values in 0..1; empty for the defaults.
        std: of each channel, for values in 0..1; empty for the defaults.
        mixed_sizes: sides of the global crops, one of which is drawn for each step; empty for `global_size` alone.
            Local crops keep their share of the side.
        early_size: side of the global crops early in the run, pixels; 0 for none. Local crops likewise.
        early_until: how long: an int is steps, a float a share of the run.
        fixed_views: different sets of crops that an image has, one after the other in each epoch; 0 draws new ones
            every time. Few of them let `opendino distill` keep what its teacher says, and teach less.
    """

    global_size: int = 224
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_size: int = 98
    local_scale: tuple[float, float] = (0.05, 0.32)
    local_number: int = 8
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray: float = 0.2
    blur: Literal["effective", "paper", "none"] = "effective"
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.2
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    mixed_sizes: tuple[int, ...] = ()
    early_size: int = 0
    early_until: int | float = 0.75
    fixed_views: int = 0

    def __post_init__(self) -> None:
        for name, highest in _AMOUNTS.items():
            if not 0 <= getattr(self, name) <= highest:
                raise ConfigError(f"crops.{name} = {getattr(self, name)} is out of its range, 0 to {highest:g}")
        for name, highest in _RANGES.items():
            low, high = getattr(self, name)
            if not 0 < low <= high <= highest:
                raise ConfigError(
                    f"crops.{name} = {[low, high]} is no range; use two rising numbers above 0, at most {highest:g}"
                )
        check_numbers("crops", vars(self), _SIZES | _STATISTICS)


def check_crops(crops: CropsConfig, patch_size: int) -> None:
    """Check that all crop sizes are whole numbers of patches.

    Raises:
        ConfigError: says which sizes would do.
    """
    sizes = [("global_size", crops.global_size), ("early_size", crops.early_size)]
    sizes += [("local_size", crops.local_size)] * bool(crops.local_number)
    for name, size in [*sizes, *(("mixed_sizes", size) for size in crops.mixed_sizes)]:
        if size % patch_size:
            below, above = size // patch_size * patch_size, -(-size // patch_size) * patch_size
            fitting = f"{below} or {above}" if below else f"{above}"
            raise ConfigError(f"crops.{name} = {size} is not a multiple of the patch size {patch_size}; use {fitting}")


class Look(NamedTuple):
    """All that is drawn of one view.

    Attributes:
        size: side of the view, pixels.
        box: what is cut out of the image.
        flip: whether left and right are exchanged.
        order: of brightness (0), contrast (1), saturation (2) and hue (3); empty without colour jitter.
        factors: of brightness, contrast and saturation, and the shift of the hue in circles.
        gray: whether colours go.
        sigma: standard deviation of the blur, pixels; 0 without.
        solarize: whether light values are inverted.
    """

    size: int
    box: Box
    flip: bool
    order: tuple[int, ...]
    factors: tuple[float, float, float, float]
    gray: bool
    sigma: float
    solarize: bool


class Crops(NamedTuple):
    """Views of one image, uint8 or float32 in 0..1 (not yet normalised), each [C, H, W].

    Attributes:
        globals: the two global crops.
        locals: the local crops.
        looks: of all views, global ones first, where their flips and colours are still to be done; else empty.
        slow: whether the fast way could not take the image.
    """

    globals: list[Shaped[np.ndarray, "C H W"]]
    locals: list[Shaped[np.ndarray, "C h w"]]
    looks: tuple[Look, ...] = ()
    slow: bool = False


class _View(NamedTuple):
    """What differs between the first global, the second global and the local crops."""

    size: int
    scale: tuple[float, float]
    blur: float
    solarize: float


class MultiCrop:
    """Two global and `local_number` local crops of an image, all drawn independently from the whole image.

    Args:
        config: the views.
        channels: of the images.
        bare: only cut and resize; flips and colours are handed on as `Crops.looks`.

    Source: official `data/augmentations.py`; the blur probabilities are its effective ones, see `CropsConfig.blur`.
    Differs: all random numbers come from one generator that the caller gives; no global state.
    """

    def __init__(self, config: CropsConfig, channels: int = 3, *, bare: bool = False) -> None:
        self.config, self.channels, self.bare = config, channels, bare
        first, second, local = _BLUR.get(config.blur, (0.0, 0.0, 0.0))
        view = _View(config.global_size, config.global_scale, first, 0.0)
        self._views = [view, view._replace(blur=second, solarize=config.solarize)]
        self._views += [_View(config.local_size, config.local_scale, local, 0.0)] * config.local_number

    def __call__(self, image: Decoded, rng: np.random.Generator) -> Crops:
        """Draw the views of one image.

        Args:
            image: Pillow image, or float32 [H, W, C] in 0..1.
            rng: source of all random numbers; the same state gives the same views.

        Raises:
            DataError: the image is no photograph and has not the wanted channels.
        """
        image = match_channels(image, self.channels)
        looks = self.draw(*size_of(image), rng)
        crops = [show(image, look, bare=self.bare) for look in looks]
        return Crops(crops[:2], crops[2:], looks if self.bare else ())

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[Look, ...]:
        """What is to be done to an image of this size for each view, global ones first."""
        draws = rng.random((len(self._views), _ROW)).tolist()
        return tuple(self._look(height, width, view, row) for view, row in zip(self._views, draws, strict=True))

    def _look(self, height: int, width: int, view: _View, draws: list[float]) -> Look:
        config = self.config
        mirror, jitter, order, *strengths, gray, blur, sigma, solarize = draws[DRAWS:]
        low, high = config.blur_sigma
        return Look(
            size=view.size,
            box=random_box(height, width, view.scale, config.aspect, draws[:DRAWS]),
            flip=mirror < config.flip,
            order=_ORDERS[int(order * len(_ORDERS))] if jitter < config.jitter else (),
            factors=(
                _factor(config.brightness, strengths[0]),
                _factor(config.contrast, strengths[1]),
                _factor(config.saturation, strengths[2]),
                config.hue * (2 * strengths[3] - 1),
            ),
            gray=gray < config.gray,
            sigma=low + (high - low) * sigma if blur < view.blur else 0.0,
            solarize=solarize < view.solarize,
        )


def show(image: Decoded, look: Look, *, bare: bool = False) -> Shaped[np.ndarray, "C h w"]:
    """One view of an image, by Pillow for photographs and by NumPy for arrays.

    Args:
        image: Pillow image, or float32 [H, W, C] in 0..1.
        look: what is done.
        bare: only cut and resize.
    """
    crop = resize(cut(image, look.box), look.size, look.size)
    if bare:
        return pixels_of(crop)
    if look.flip:
        crop = flip(crop)
    operations = photometric.JITTER_IMAGE if isinstance(crop, Image.Image) else photometric.JITTER_ARRAY
    for which in look.order:
        crop = operations[which](crop, look.factors[which])
    if look.gray:
        crop = photometric.grey_image(crop) if isinstance(crop, Image.Image) else photometric.grey_array(crop)
    pixels = pixels_of(crop)
    if look.sigma:
        pixels = photometric.blur(pixels, look.sigma)
    return photometric.solarize(pixels) if look.solarize else pixels


def _factor(strength: float, draw: float) -> float:
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * draw
