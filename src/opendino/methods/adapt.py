# SPDX-License-Identifier: Apache-2.0
"""DINOv2 on a backbone that is trained already: new heads first, and LoRA in place of all of its weights.

The losses are those of `dinov2.py`. Where heads are new, the backbone is frozen for the first steps, until they say
something: gradients of heads that know nothing would undo what it has learnt. With LoRA the student's backbone holds
thin products beside its frozen layers; the teacher's is a plain one and follows what the student would hold, merged.
With a Gram term the student's patches stay as alike to each other as those of the start are, which long runs wear off.
"""

import math
import re
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from opendino.config import check_numbers
from opendino.data.collate import PretrainBatch
from opendino.layers.lora import add_lora, merged_parameters
from opendino.losses.gram import gram_loss
from opendino.methods.dinov2 import DINOv2, StudentViews, Targets, Tokens, tokens_of
from opendino.methods.guide import Guide, Guided, Statistics, on_grid
from opendino.models.vision_transformer import VisionTransformer
from opendino.optim.ema import move


@dataclass(frozen=True)
class GramConfig:
    """The term that keeps how alike patches are to each other as it was at the start; see `losses/gram.py`.

    Attributes:
        loss_weight: weight of the term; 0 leaves it out.
        size: side of the global crops as the start sees them, pixels: a larger one gives it finer patches, which are
            averaged onto the student's; 0 shows them as they are.
    """

    loss_weight: float = 0.0
    size: int = 0

    def __post_init__(self) -> None:
        check_numbers("gram", vars(self), {"loss_weight": (0, math.inf), "size": (0, 2**16)})


class Adaptation(Guided, DINOv2):
    """DINOv2 with a phase for the heads alone, with LoRA, and with a Gram term.

    Attributes:
        head_steps: first steps in which the backbone is frozen.
        gram_weight: of the Gram term, if there is an anchor.
    """

    head_steps: int = 0
    gram_weight: float = 0.0
    _patches: Float[Tensor, "GB N D"] | None = None
    _lora: bool = False
    _frozen: bool = False

    def use_lora(self, rank: int, alpha: float, layers: str, also: str) -> list[str]:
        """Freeze the student's backbone but for LoRA's products; the teacher's stays a plain backbone.

        Args:
            rank: inner width of the products.
            alpha: their strength.
            layers: which linear layers get them: a regular expression for the end of their names.
            also: parameters that learn themselves: a regular expression for the beginning of their names.

        Returns:
            Names of the layers.

        Raises:
            ConfigError: no layer has such a name.
        """
        backbone = self.student["backbone"]
        names = add_lora(backbone, layers, rank, alpha)
        self._lora = True
        opened = re.compile(also)
        for name, parameter in backbone.named_parameters():
            if opened.match(name):
                parameter.requires_grad_(True)
        return names

    def anchor_to(self, backbone: VisionTransformer, config: GramConfig, images: Statistics) -> None:
        """Keep the student's patches as alike to each other as those of a network are, which is frozen.

        Args:
            backbone: of any width; it is no part of the method's state.
            config: weight, and the size that it sees.
            images: mean and deviation that the run's crops are normalised with.
        """
        self.guide_by(Guide(nn.ModuleDict({"backbone": backbone}), images=images, size=config.size))
        self.gram_weight = config.loss_weight

    def begin_step(self, step: int) -> None:
        """Freeze the backbone in the first steps, and let it learn from then on."""
        self._frozen = step < self.head_steps

    def student_tokens(self, crops: list[Tensor], masks: list[Tensor | None], indices: Int64[Tensor, " M"]) -> Tokens:
        """As in `DINOv2`; while the backbone is frozen without what a gradient would need, with a Gram term of all."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            if not self.has_guide:
                return super().student_tokens(crops, masks, indices)
            features = self.student["backbone"](crops, masks=masks, is_training=True)
        self._patches = features[0]["x_norm_patchtokens"]
        return tokens_of(features, indices)

    def terms(self, views: StudentViews, targets: Targets, batch: PretrainBatch) -> dict[str, Tensor]:
        """As in `DINOv2`, and the Gram term of the global crops, if there is an anchor."""
        terms, patches = super().terms(views, targets, batch), self._patches
        if patches is None:
            return terms
        self._patches = None  # of this batch alone
        height, width = batch.global_crops.shape[2:]
        rows = math.isqrt(patches.shape[1] * height // width)  # N = h w, and h : w is that of the crop
        anchor = on_grid(self.guide(batch).patches, (rows, patches.shape[1] // rows))
        return terms | {"gram": self.gram_weight * gram_loss(patches, anchor, batch.masks)}

    @torch.no_grad()
    def update_teacher(self, momentum: float, counts: Float32[Tensor, ""] | None = None) -> None:
        """Move the teacher towards the student; with LoRA, towards what it would hold with the products merged."""
        if not self._lora:
            super().update_teacher(momentum, counts)
            return
        current = merged_parameters(self.student)
        averages: dict[str, Tensor] = dict(self.teacher.named_parameters())
        move(list(averages.values()), [current[name] for name in averages], 1 - momentum, counts)
