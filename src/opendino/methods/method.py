# SPDX-License-Identifier: Apache-2.0
"""What every method is: a student, a teacher that follows or leads, and a loss of a batch; read `dinov2.py` next."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from opendino.data.collate import PretrainBatch
from opendino.optim.ema import update_ema


class StepOutput(NamedTuple):
    """The loss of a batch and what it is made of.

    Attributes:
        loss: to be back-propagated.
        terms: `dino_local`, `dino_global`, `ibot` and `koleo` as they enter the loss, weights included, without
            gradient; added up in this order they are the loss, to the last bit. A term that is left out is 0.

    The official log shows other figures of the same loss: its `ibot_loss` and `koleo_loss` are half of ours, its DINO
    losses are ours over `dino.loss_weight`, and its `total_loss` is the sum of those, not what it back-propagates.
    With K prototypes a run starts a little above 16/18 ln K, 2/18 ln K and 0.5 ln K, with a running centre only after
    some twenty steps: before the centre is there, student and teacher agree on a few prototypes, and the first losses
    are about 7 % lower. `koleo` starts at 1 to 2 where LayerScale starts at 1e-5.
    """

    loss: Float32[Tensor, ""]
    terms: dict[str, Float32[Tensor, ""]]


class Method(nn.Module):
    """A student and a teacher with a loss between them; the loop in `train/loop.py` knows no more than this.

    A method is called with a batch and the teacher's temperature and returns what is to be back-propagated. It never
    calls `.backward()`.

    Attributes:
        student: networks by name, "backbone" among them; the optimizer has their parameters.
        teacher: networks by name, "backbone" among them, without gradients and always in evaluation mode; the run's
            weights and figures are taken of them.
    """

    student: nn.ModuleDict
    teacher: nn.ModuleDict

    def forward(self, batch: PretrainBatch, teacher_temp: float) -> StepOutput:
        """Loss of a batch.

        Args:
            batch: normalised crops and masks, on the device of the networks.
            teacher_temp: temperature of the targets at this step.
        """
        raise NotImplementedError

    def passes(self, batch: PretrainBatch, teacher_temp: float, parts: int) -> Iterator[StepOutput]:
        """Losses of a batch in parts, whose sum is the loss of the batch; each is back-propagated before the next.

        As it stands here it is right for a loss that is a mean over images. A method that compares images with each
        other has to say how (`DINOv2.passes`).

        Args:
            batch: as in `forward`.
            teacher_temp: as in `forward`.
            parts: as many passes; a divisor of the number of images.
        """
        if parts == 1:
            yield self(batch, teacher_temp)
            return
        for part in batch.split(parts):
            loss, terms = self(part, teacher_temp)
            yield StepOutput(loss / parts, {name: term / parts for name, term in terms.items()})

    def probabilities(self, logits: Float[Tensor, "n K"], temp: float) -> Float32[Tensor, "n K"]:
        """What the teacher says of images, as looks at a run see it; nothing is remembered of them.

        Args:
            logits: of the prototypes, by the teacher's "dino_head".
            temp: the teacher's temperature.
        """
        return torch.softmax(logits.float() / temp, dim=-1)

    def begin_step(self, step: int) -> None:
        """Called by the loop before each step, with the number of steps done; a method with phases changes here.

        What it does has to follow from the number alone, for a resumed run begins anywhere, and be the same in all
        processes. A parameter that takes no gradient for a while has none, and the optimizer leaves it as it is.
        """

    def subnetworks(self) -> dict[str, nn.Module]:
        """The student's networks by name, each of which is clipped by its own gradient norm."""
        return dict(self.student.items())

    def results(self) -> dict[str, nn.Module]:
        """The backbones that a run is for, by name, "" that of its weights; others get a folder under `students/`."""
        return {"": self.teacher["backbone"]}

    def update_teacher(self, momentum: float, counts: Float32[Tensor, ""] | None = None) -> None:
        """Move the teacher towards the student, after the optimizer's step.

        Args:
            momentum: share of the old teacher that stays.
            counts: 0 on the device where the step was left out and nothing may change; None is 1.
        """
        update_ema(self.teacher, self.student, momentum, counts)

    def train(self, mode: bool = True) -> "Method":
        """Training mode for the student and what remembers targets; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self
