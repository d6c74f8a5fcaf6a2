# SPDX-License-Identifier: Apache-2.0
"""A glance at a run each few steps, without labels: what teacher and student say of a few fixed images.

It is what the watch of `eval/watch.py` sees, and has to be cheap: `pace` bounds the work of looking by that of
training. The images are decoded once and stay in memory. Read next: `probe.py`, the dearer look with labels.
"""

import logging
import math
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from opendino.data.augment import CropsConfig
from opendino.data.datasets import ImageDataset
from opendino.data.samplers import permute
from opendino.errors import DataError
from opendino.eval import health
from opendino.eval._dense import evaluating
from opendino.eval._features import FeatureConfig, transform_of
from opendino.eval._spectrum import high_norm_share, mean_std, patch_similarity
from opendino.eval.watch import WatchConfig
from opendino.losses.dino import STUDENT_TEMP
from opendino.methods.method import Method
from opendino.models.vision_transformer import VisionTransformer
from opendino.train.probe import prototypes_of

_log = logging.getLogger(__name__)

_SEED = 0  # the same images in every run, so that runs can be compared
_LEAST, _A_STEP = 16, 4  # images of a glance: no fewer, and no more than so many times those of a step
_PATCHED = 16  # images whose patches are looked at
_ROWS = 64  # images of a pass
_BACKWARD = 3  # a pass with its gradient, in passes without


class Pace(NamedTuple):
    """How much is looked at, and how often.

    Attributes:
        images: of a glance.
        every: steps between two; 0 for none of their own.
    """

    images: int
    every: int


def pace(config: WatchConfig, crops: CropsConfig, batch: int) -> Pace:
    """Images and steps with which glances stay below `config.share` of the work of training.

    Work is counted in passes of one global crop; a count and no clock, for a run that is continued has to look at the
    same steps.

    Args:
        config: what is wished for.
        crops: of a step.
        batch: images of a step of this process.
    """
    images = max(min(config.images, _A_STEP * batch), min(config.images, _LEAST))
    if not config.every:
        return Pace(images, 0)
    glance = 2 * images  # the teacher's pass and the student's
    return Pace(images, max(config.every, math.ceil(glance / (config.share * work(crops, batch)))))


def work(crops: CropsConfig, batch: int) -> float:
    """Work of a training step, in passes of one global crop."""
    local = crops.local_number * (crops.local_size / crops.global_size) ** 2
    return batch * (2 + _BACKWARD * (2 + local))


class Glance:
    """Measures a method on a few fixed images, the same in every call.

    Args:
        config: how many images, and how often.
        dataset: of the run, with its number of channels.
        crops: of the run; they say what a step costs.
        batch: images of a step of this process.
        precision: of the run.

    Attributes:
        pace: how many images, and how often.
    """

    def __init__(
        self,
        config: WatchConfig,
        dataset: ImageDataset,
        crops: CropsConfig,
        batch: int,
        precision: Literal["fp32", "bf16"],
    ) -> None:
        self.pace = pace(config, crops, batch)
        self._dataset, self._precision = dataset, precision
        self._pictures: Tensor | None = None
        if self.pace.every > config.every:
            _log.info(
                "looking at the teacher each %d steps, not each watch.every = %d: with %d images a step that would be "
                "more than watch.share = %g of the work",
                *(self.pace.every, config.every, batch, config.share),
            )

    def due(self, step: int) -> bool:
        """Whether it is time for a glance of its own."""
        return self.pace.every > 0 and step % self.pace.every == 0

    def __call__(self, method: Method, teacher_temp: float) -> dict[str, float]:
        """Figures of `health.summary` and of the patches, as `watch/...`; empty where no two images can be read.

        Args:
            method: its networks are left as they are.
            teacher_temp: temperature of the teacher's probabilities.
        """
        backbone = cast("VisionTransformer", method.teacher["backbone"])
        if self._pictures is None:
            self._pictures = self._decoded(backbone)
        if len(self._pictures) < 2:
            return {}
        with torch.no_grad(), evaluating(method.student, method.teacher):
            cls, patches, lengths, logits = self._said(method.teacher)
            probabilities = student = None
            if logits is not None:
                probabilities = method.probabilities(logits, teacher_temp)
                *_, said = self._said(method.student)
                if said is not None and said.shape == logits.shape:
                    student = torch.log_softmax(said / STUDENT_TEMP, dim=-1)
        figures = health.summary(cls, probabilities, student=student, prototypes=prototypes_of(method.teacher))
        figures |= {"patch_std": mean_std(patches.flatten(0, 1)), "patch_similarity": patch_similarity(patches)}
        figures["patch_high_norm_share"] = high_norm_share(lengths)
        return {f"watch/{name}": value for name, value in figures.items()}

    def _said(
        self, network: nn.ModuleDict
    ) -> tuple[Float[Tensor, "n D"], Float[Tensor, "m N D"], Float[Tensor, "m N D"], Float[Tensor, "n K"] | None]:
        """CLS of all images, patches of some, with and without the final norm, and logits where there is a head."""
        backbone = cast("VisionTransformer", network["backbone"])
        head = dict(network.items()).get("dino_head")
        device = next(backbone.parameters()).device
        tokens, patches, plain, logits = [], [], [], []
        pictures = cast("Tensor", self._pictures)
        for images in pictures.split(_ROWS):
            with torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16"):
                features = backbone.forward_features(images.to(device))
                cls = features["x_norm_clstoken"]
                if head is not None:
                    logits.append(head(cls).float())
            tokens.append(cls.float())
            if not patches:
                patches.append(features["x_norm_patchtokens"][:_PATCHED].float())
                plain.append(features["x_prenorm"][:_PATCHED, 1 + backbone.num_register_tokens :].float())
        return torch.cat(tokens), patches[0], plain[0], torch.cat(logits) if logits else None

    def _decoded(self, backbone: VisionTransformer) -> Float[Tensor, "n C H W"]:
        """The images that can be read, as evaluation sees them."""
        dataset, transform = self._dataset, transform_of(backbone, FeatureConfig())
        wanted = min(self.pace.images, len(dataset))
        pictures = []
        for row in permute(np.arange(wanted), len(dataset), _SEED, 0).tolist():
            try:
                pictures.append(transform(dataset.image(row)))
            except (DataError, OSError) as error:
                _log.debug("not looked at: %s: %s", dataset.identify(row), error)
        return torch.stack(pictures) if pictures else torch.empty(0, transform.channels, *transform.size)
