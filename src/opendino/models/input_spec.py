# SPDX-License-Identifier: Apache-2.0
"""What images a backbone expects: size, channels, mean and deviation; read by evaluation and export."""

from dataclasses import dataclass

from opendino.data.normalization import normalization


@dataclass(frozen=True)
class InputSpec:
    """How images are prepared for a backbone.

    Attributes:
        size: (H, W) in pixels that evaluation uses unless told otherwise; the backbone itself takes any.
        channels: C.
        mean: of each channel, on a scale where images lie in [0, 1].
        std: of each channel, on the same scale.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def default(cls, size: tuple[int, int], channels: int) -> "InputSpec":
        """The channels' usual statistics: ImageNet's for three, see `data/normalization.py` for any other number."""
        return cls(size, channels, *normalization(channels))
