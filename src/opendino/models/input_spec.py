# SPDX-License-Identifier: Apache-2.0
"""What images a backbone expects: size, channels, mean and deviation; read by evaluation and export."""

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
        """ImageNet's statistics for three channels; for any other number, their average in every channel."""
        if channels == len(IMAGENET_MEAN):
            return cls(size, channels, IMAGENET_MEAN, IMAGENET_STD)
        mean, std = (sum(values) / len(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return cls(size, channels, (mean,) * channels, (std,) * channels)
