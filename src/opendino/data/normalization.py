# SPDX-License-Identifier: Apache-2.0
"""Mean and deviation of the channels that a backbone is fed; used by `augment.py`, `transforms.py` and the models."""

from collections.abc import Sequence

from opendino.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalization(
    channels: int, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for values in 0..1.

    Without given values: ImageNet's for 3 channels, 0.5 and 0.25 for any other number.

    Raises:
        ConfigError: as many values as channels were wanted.
    """
    photographs = channels == len(IMAGENET_MEAN)
    mean = tuple(mean) or (IMAGENET_MEAN if photographs else (0.5,) * channels)
    std = tuple(std) or (IMAGENET_STD if photographs else (0.25,) * channels)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ConfigError(f"crops.{name} has {len(values)} values for {channels} channels; give one for each")
    if min(std) <= 0:
        raise ConfigError(f"crops.std = {list(std)} holds a value that is not positive; give standard deviations")
    return mean, std
