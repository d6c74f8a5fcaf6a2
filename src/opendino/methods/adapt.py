# SPDX-License-Identifier: Apache-2.0
"""DINOv2 on a backbone that is trained already: new heads first, and LoRA in place of all of its weights.

The losses are those of `dinov2.py`. Where heads are new, the backbone is frozen for the first steps, until they say
something: gradients of heads that know nothing would undo what it has learnt. With LoRA the student's backbone holds
thin products beside its frozen layers; the teacher's is a plain one and follows what the student would hold, merged.
"""

import re

import torch
from torch import Tensor

from opendino.layers.lora import add_lora, merged_parameters
from opendino.methods.dinov2 import DINOv2
from opendino.models.outputs import FeatureDict


class Adaptation(DINOv2):
    """DINOv2 with a phase for the heads alone, and with LoRA.

    Attributes:
        head_steps: first steps in which the backbone is frozen.
    """

    head_steps: int = 0
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

    def begin_step(self, step: int) -> None:
        """Freeze the backbone in the first steps, and let it learn from then on."""
        self._frozen = step < self.head_steps

    def student_features(self, crops: list[Tensor], masks: list[Tensor | None]) -> list[FeatureDict]:
        """As in `DINOv2`; while the backbone is frozen, without what a gradient would need."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            return super().student_features(crops, masks)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student; with LoRA, towards what it would hold with the products merged."""
        if not self._lora:
            super().update_teacher(momentum)
            return
        current = merged_parameters(self.student)
        averages: dict[str, Tensor] = dict(self.teacher.named_parameters())
        torch._foreach_lerp_(list(averages.values()), [current[name] for name in averages], 1 - momentum)
