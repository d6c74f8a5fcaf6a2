# SPDX-License-Identifier: Apache-2.0
"""What one training step gets of its images, and how views and masks are put together; read `loaders.py` next.

Crops are crop-major: rows 0..B-1 are the first crop of every image, rows B..2B-1 the second, and so on.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor

from opendino.data.augment import Crops, Look
from opendino.data.effects import ChunkedEffects
from opendino.data.masking import BatchMasks, MaskConfig, Padding
from opendino.errors import DataError


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read, and was replaced by another."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class PretrainBatch:
    """Images of one step on one process.

    Attributes:
        global_crops: two crops of every image, crop-major; normalised float32 as the loader hands them out (uint8
            or float32 in 0..1 before `normalize`).
        local_crops: local crops of every image, crop-major; of the same type; no rows without local crops.
        masks: patches hidden from the student, for every global crop.
        mask_indices: flat positions of the masked patches in `masks`, increasing; behind them what `padding` adds.
        masks_weight: one over the number of masked patches of the same crop, for every masked patch; 0 for padding.
        images: number of images B.
        ids: index of every image in the data set.
        skipped: images that could not be read while this batch was made.
        slow: number of images that the fast decoder left to Pillow.
        global_effects: flips and colours that `finish` still gives to the global crops; None for none.
        local_effects: likewise for the local crops.
        padding: how `mask_indices` and `masks_weight` were filled up; None where they hold masked patches alone.
    """

    global_crops: Shaped[Tensor, "GB C H W"]
    local_crops: Shaped[Tensor, "LB C h w"]
    masks: Bool[Tensor, "GB N"]
    mask_indices: Int64[Tensor, " M"]
    masks_weight: Float32[Tensor, " M"]
    images: int
    ids: Int64[Tensor, " B"]
    skipped: tuple[Skipped, ...] = ()
    slow: int = 0
    global_effects: ChunkedEffects | None = None
    local_effects: ChunkedEffects | None = None
    padding: Padding | None = None

    @property
    def masked(self) -> Bool[Tensor, " M"] | None:
        """Which of `mask_indices` are masked patches and not padding; None where all are."""
        return None if self.padding is None else self.masks_weight > 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PretrainBatch":
        """The same batch with all tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PretrainBatch":
        """The same batch in page-locked memory, for asynchronous copies; the loader's pinning thread calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: Any) -> None:  # noqa: ANN401  torch's own
        """Tell torch that another stream than the one that made the tensors uses them too; on CUDA alone."""

        def tell(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(tell)

    def finish(self, mean: Sequence[float], std: Sequence[float]) -> "PretrainBatch":
        """The same batch with all effects done on its device, and normalised."""
        crops = {"global_crops": self.global_effects, "local_crops": self.local_effects}
        done = {name: effects(getattr(self, name)) for name, effects in crops.items() if effects is not None}
        return replace(self, **done, global_effects=None, local_effects=None).normalize(mean, std)

    def normalize(self, mean: Sequence[float], std: Sequence[float]) -> "PretrainBatch":
        """The same batch with crops as (value - mean) / std in float32, values counted from 0 to 1."""
        return replace(
            self,
            global_crops=normalize(self.global_crops, mean, std),
            local_crops=normalize(self.local_crops, mean, std),
        )

    def pad(self, step_rows: int, config: MaskConfig) -> "PretrainBatch":
        """The same batch with as many masked patches in its lists as any other of its shape, nearly; see `Padding`.

        Args:
            step_rows: global crops of the whole step, over all processes.
            config: that the masks of that step were drawn by.
        """
        padding = Padding(step_rows, config, tuple(self.masks.sum(dim=1).tolist()))
        indices, weights = padding.fill(self.mask_indices, self.masks_weight, self.masks.shape[1])
        return replace(self, mask_indices=indices, masks_weight=weights, padding=padding)

    def split(self, parts: int) -> list["PretrainBatch"]:
        """The batch in parts of as many images each, crop-major again; what was skipped stays with the first.

        Args:
            parts: a divisor of the number of images.

        Raises:
            DataError: the images cannot be shared out equally.
        """
        if parts < 1 or self.images % parts:
            raise DataError(f"{self.images} images cannot be cut into {parts} equal parts; use a divisor")
        size = self.images // parts
        return [self._some(slice(first, first + size)) for first in range(0, self.images, size)]

    def _some(self, rows: slice) -> "PretrainBatch":
        def of_each_crop(tensor: Tensor) -> Tensor:
            if not len(tensor):
                return tensor
            return tensor.unflatten(0, (-1, self.images))[:, rows].flatten(0, 1)

        return replace(
            self,
            global_crops=of_each_crop(self.global_crops),
            local_crops=of_each_crop(self.local_crops),
            masks=of_each_crop(self.masks),
            images=len(self.ids[rows]),
            ids=self.ids[rows],
            skipped=self.skipped if rows.start == 0 else (),
            **self._masked_of(rows),
        )

    def _masked_of(self, rows: slice) -> dict[str, Any]:
        """Masked patches of some images; where they are stands in a list by crops, so nothing is looked up in masks."""
        crops, patches = self.masks.shape
        # Without padding nobody has counted on the CPU, and a GPU is waited for.
        counts = self.padding.counts if self.padding is not None else self.masks.sum(dim=1).tolist()
        ends, here = [0, *itertools.accumulate(counts)], rows.stop - rows.start
        indices, weights, own = [], [], []
        for crop in range(crops // self.images):
            first = crop * self.images + rows.start
            part = slice(ends[first], ends[first + here])
            indices.append(self.mask_indices[part] - (first - crop * here) * patches)
            weights.append(self.masks_weight[part])
            own.extend(range(first, first + here))
        found = torch.cat(indices), torch.cat(weights)
        padding = None if self.padding is None else self.padding.some(own)
        found = found if padding is None else padding.fill(*found, patches)
        return {"mask_indices": found[0], "masks_weight": found[1], "padding": padding}

    def _map(self, function: Callable[[Tensor], Tensor]) -> "PretrainBatch":
        moved = {name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        effects = {name: value.map(function) for name, value in vars(self).items() if isinstance(value, ChunkedEffects)}
        return replace(self, **moved, **effects)


def normalize(
    images: Shaped[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "B C H W"]:
    """(value - mean) / std of each channel in float32; uint8 counts from 0 to 255, floats from 0 to 1."""
    full = 255.0 if images.dtype == torch.uint8 else 1.0
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), full, images.device)
    return torch.addcmul(shift, images.to(torch.float32, memory_format=torch.contiguous_format), scale)


@lru_cache(maxsize=16)  # a copy to a GPU each step otherwise
@torch.inference_mode(mode=False)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], full: float, device: torch.device
) -> tuple[Float32[Tensor, "1 C 1 1"], Float32[Tensor, "1 C 1 1"]]:
    scale = torch.tensor(std, dtype=torch.float64).mul(full).reciprocal()
    shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    scale, shift = (t.float().view(1, -1, 1, 1).to(device, non_blocking=True) for t in (scale, shift))
    return scale, shift


def collate(
    views: Sequence[Crops], masks: BatchMasks, ids: Sequence[int], skipped: Sequence[Skipped] = ()
) -> PretrainBatch:
    """Put the views of B images together, crop-major.

    Args:
        views: of each image; all of the same shapes.
        masks: of the 2B global crops, crop-major.
        ids: index of each image in the data set.
        skipped: images that could not be read.
    """
    return PretrainBatch(
        global_crops=_stack([view.globals for view in views], len(views[0].globals[0])),
        local_crops=_stack([view.locals for view in views], len(views[0].globals[0])),
        masks=masks.masks,
        mask_indices=masks.indices,
        masks_weight=masks.weights,
        images=len(views),
        ids=torch.tensor(ids, dtype=torch.int64),
        skipped=tuple(skipped),
        slow=sum(view.slow for view in views),
        global_effects=_effects([view.looks[: len(view.globals)] for view in views]),
        local_effects=_effects([view.looks[len(view.globals) :] for view in views]),
    )


def _effects(looks: list[tuple[Look, ...]]) -> ChunkedEffects | None:
    """[image][crop] to one row a crop, crop-major."""
    rows = [image[crop] for crop in range(len(looks[0])) for image in looks]
    return ChunkedEffects.of(rows) if rows else None


def _stack(images: list[list[np.ndarray]], channels: int) -> Shaped[Tensor, "rows C H W"]:
    """[image][crop] of [C, H, W] to one tensor of crop-major rows; float32 as soon as one crop is.

    Crops whose channels come last in memory make a batch whose channels do: nothing is turned round on the CPU.
    """
    rows = [image[crop] for crop in range(len(images[0])) for image in images]
    if not rows:
        return torch.empty((0, channels, 0, 0))
    if all(row.dtype == np.uint8 for row in rows):
        return torch.from_numpy(np.stack(rows))
    return torch.from_numpy(np.stack([row / np.float32(255) if row.dtype == np.uint8 else row for row in rows]))
