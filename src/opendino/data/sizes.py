# SPDX-License-Identifier: Apache-2.0
"""Crops whose size changes from step to step: small ones early in a run, or several sizes mixed; see `loaders.py`.

All crops of a step have the size of that step, which follows from the seed and the step's number alone: it is the same
in every process, and in a run that was interrupted. The position table stays that of `crops.global_size`; the backbone
resizes it for other sizes.
"""

from dataclasses import replace

from opendino.data.augment import CropsConfig
from opendino.data.samplers import keyed_rng
from opendino.errors import ConfigError


class CropSizes:
    """The views of an image at each step of a run.

    Args:
        crops: as configured, `early_until` in steps.
        patch_size: side of a patch, pixels.
        seed: of the run.

    Raises:
        ConfigError: `early_until` is a share of a run whose length is not known here.

    Source: for early small crops, FastDINOv2 (Zhang et al. 2025), section 3.
    """

    def __init__(self, crops: CropsConfig, patch_size: int, seed: int) -> None:
        if crops.early_size and isinstance(crops.early_until, float):
            raise ConfigError(
                f"crops.early_until = {crops.early_until} is a share of a run, and batches know of steps; use those"
            )
        self.crops, self.patch_size, self.seed = crops, patch_size, seed
        self.early_steps = int(crops.early_until) if crops.early_size else 0

    def at(self, step: int) -> CropsConfig:
        """The views at a step: another side of the global crops, and of the local ones in proportion."""
        crops = self.crops
        if step < self.early_steps:
            return self._of(crops.early_size)
        if not crops.mixed_sizes:
            return crops
        draw = keyed_rng(self.seed, "crop size", step).integers(len(crops.mixed_sizes))
        return self._of(crops.mixed_sizes[int(draw)])

    def _of(self, size: int) -> CropsConfig:
        crops, patch = self.crops, self.patch_size
        local = max(round(crops.local_size * size / (crops.global_size * patch)), 1) * patch
        return replace(crops, global_size=size, local_size=local)
