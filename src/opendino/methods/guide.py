# SPDX-License-Identifier: Apache-2.0
"""A frozen teacher of another shape than the student: what it says of a batch; read `distill.py` next.

It stands beside a method's student and teacher, not among them: it is never trained, never stored in a checkpoint, and
need not have the student's patch size, crop size or normalisation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opendino.axes import Images
from opendino.data.collate import PretrainBatch
from opendino.errors import ModelError
from opendino.methods.method import Method
from opendino.models.vision_transformer import VisionTransformer

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and deviation of each channel, for values in 0..1."""


class Said(NamedTuple):
    """What a guide says of the global crops: its normed tokens."""

    cls: Float[Tensor, "GB D"]
    patches: Float[Tensor, "GB h w D"]


class Memory(Protocol):
    """Remembers what was said of crops."""

    def said(self, crops: Images, say: Callable[[Images], Said]) -> Said:
        """What a guide says of crops, asking it only where it has to."""
        ...


class Guide(nn.Module):
    """A frozen network, and how a run's crops are made fit for it.

    Args:
        network: "backbone", and "dino_head" and "ibot_head" as far as it has them.
        centers: running centres of its targets by their names in a run's state, where it was trained with them.
        images: normalisation of the run's crops; None if the backbone expects them as they are.
        size: side that crops are resized to for it, pixels; 0 for none.

    Attributes:
        memory: what it said before; None where it is asked anew of every batch.
    """

    memory: Memory | None = None

    def __init__(
        self,
        network: nn.ModuleDict,
        centers: Mapping[str, Tensor] | None = None,
        images: Statistics | None = None,
        size: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.centers, self.size = network, dict(centers or {}), size
        spec = self.backbone.input_spec
        mean, std = images or (spec.mean, spec.std)
        # (value - mean) / std of the run to that of the guide.
        scale = [run / own for run, own in zip(std, spec.std, strict=True)]
        shift = [(run - own) / dev for run, own, dev in zip(mean, spec.mean, spec.std, strict=True)]
        self._same = max(map(abs, [*shift, *(one - 1 for one in scale)])) < 1e-6
        self.register_buffer("_scale", torch.tensor(scale).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_shift", torch.tensor(shift).view(1, -1, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def backbone(self) -> VisionTransformer:
        """Its backbone."""
        return cast("VisionTransformer", self.network["backbone"])

    @torch.no_grad()
    def forward(self, batch: PretrainBatch) -> Said:
        """What it says of the unmasked global crops of a batch.

        Args:
            batch: normalised crops, on its device.

        Raises:
            ModelError: the crops do not fit it.
        """
        return self.say(batch.global_crops) if self.memory is None else self.memory.said(batch.global_crops, self.say)

    @torch.no_grad()
    def say(self, crops: Images) -> Said:
        """The same of crops."""
        fitting = crops if self._same else torch.addcmul(self._shift, crops.float(), self._scale)
        if self.size and self.size != crops.shape[-1]:
            fitting = F.interpolate(fitting, (self.size, self.size), mode="bicubic", antialias=True)
        height, width = (side // self.backbone.patch_size for side in fitting.shape[2:])
        features = self.backbone.forward_features(fitting)
        return Said(features["x_norm_clstoken"], features["x_norm_patchtokens"].unflatten(1, (height, width)))

    def train(self, mode: bool = True) -> "Guide":  # noqa: ARG002 (the signature of nn.Module)
        """It stays in evaluation mode."""
        return super().train(False)


def check_crops_fit(backbone: VisionTransformer, size: int, where: str = "the teacher") -> None:
    """Check that square crops of a size are whole numbers of a backbone's patches.

    Raises:
        ModelError: they are not; names sizes that would do.
    """
    patch = backbone.patch_size
    if size % patch:
        below, above = size // patch * patch, -(-size // patch) * patch
        raise ModelError(
            f"{where} has patches of {patch} pixels, which do not divide the {size} pixels of its crops; set "
            f"distill.resize={below or above} to show it resized ones (or {above})"
        )


def on_grid(patches: Float[Tensor, "GB h w D"], grid: tuple[int, int]) -> Float[Tensor, "GB N D"]:
    """Patch tokens on another patch grid of the same crop, row-major: bilinear, averaged where the grid is coarser."""
    if tuple(patches.shape[1:3]) != grid:
        planes = patches.permute(0, 3, 1, 2).float()
        planes = F.interpolate(planes, grid, mode="bilinear", antialias=True)
        patches = planes.permute(0, 2, 3, 1).to(patches.dtype)
    return patches.flatten(1, 2)


class Guided(Method):
    """A method that may have a guide, which moves between devices with it and is no part of its state."""

    _guides: tuple[Guide, ...] = ()

    @property
    def guide(self) -> Guide:
        """The frozen teacher; there has to be one."""
        return self._guides[0]

    @property
    def has_guide(self) -> bool:
        """Whether there is one."""
        return bool(self._guides)

    def guide_by(self, guide: Guide) -> None:
        """Take a guide; in a tuple, as a module of ours it would be in every checkpoint."""
        self._guides = (guide,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:  # noqa: ANN401 (nn.Module's own)
        for guide in self._guides:
            guide._apply(fn, recurse)
        return super()._apply(fn, recurse)
