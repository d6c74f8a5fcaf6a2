# SPDX-License-Identifier: Apache-2.0
"""DINOv2 without prototypes (SimDINOv2): cosines between unit features, and a coding rate against collapse.

Everything else is `dinov2.py`: crops, masks, the teacher's average. There is no temperature, no centring and no
Sinkhorn-Knopp; heads end at their bottleneck. Read `losses/coding_rate.py` next.
"""

import dataclasses
from typing import cast

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from opendino.data.collate import PretrainBatch
from opendino.distributed import gather_rows
from opendino.errors import ConfigError
from opendino.layers.dino_head import DINOHead
from opendino.losses.coding_rate import balance, coding_rate, cosine_loss, cosine_patch_loss
from opendino.methods.dinov2 import DINOv2, StudentViews, Targets
from opendino.methods.settings import DINOv2Config
from opendino.models.vision_transformer import VisionTransformer

_NAMES = {"dino_head": "projector", "ibot_head": "patch_projector"}


class CodingRate(DINOv2):
    """Student, teacher and losses of SimDINOv2; `student` and `teacher` hold `projector` in place of heads.

    Args:
        student_backbone: the backbone to train; its present weights are the start.
        teacher_backbone: the same shape, without stochastic depth.
        config: weights and widths; prototypes and centring are not read.

    Raises:
        ModelError: the two backbones differ in shape.
        ConfigError: the image-level term is left out, whose features the coding rate is taken of.

    Source: Wu et al. 2025, "Simplifying DINO via coding rate regularization" (arXiv 2502.10385).
    Differs: the rate is that of the batch of all processes.
    """

    def __init__(
        self,
        student_backbone: VisionTransformer,
        teacher_backbone: VisionTransformer,
        config: DINOv2Config | None = None,
    ) -> None:
        config = config or DINOv2Config()
        if not config.dino.loss_weight:
            raise ConfigError(
                "dino.loss_weight = 0 leaves dino.objective = coding_rate without features; set it above 0"
            )
        small = dataclasses.replace(config.dino, centering="none", prototypes=1)
        patches = dataclasses.replace(config.ibot, prototypes=1)
        super().__init__(student_backbone, teacher_backbone, dataclasses.replace(config, dino=small, ibot=patches))
        for network in (self.student, self.teacher):
            for old, new in _NAMES.items():
                if old in network:
                    head = network.pop(old)
                    del head.last_layer  # nothing is left of the prototypes
                    network[new] = head

    def _compares(self) -> bool:
        return True

    def _comparable(self, views: StudentViews) -> tuple[Float[Tensor, "G B _"], ...]:
        assert views.global_logits is not None  # the image-level term is there
        return (views.cls, views.global_logits)

    def _compare(self, cls: Float[Tensor, "G B D"], *others: Tensor) -> dict[str, Float32[Tensor, ""]]:
        """The weighted coding rate of the student's global crops, to be raised; and KoLeo, where it has a weight."""
        (features,) = others
        crops = [gather_rows(crop) for crop in features]
        rate = torch.stack([coding_rate(crop, self.config.dino.coding_eps) for crop in crops]).mean()
        weight = self.config.dino.coding_weight * balance(*crops[0].shape)
        koleo = super()._compare(cls) if super()._compares() else {}
        return koleo | {"coding_rate": -weight * rate}

    def _view_terms(self, views: StudentViews, targets: Targets, batch: PretrainBatch) -> dict[str, Tensor]:
        """Cosines in place of cross-entropies."""
        assert targets.crops is not None  # the image-level term is there
        local, global_ = cosine_loss(views.global_logits, views.local_logits, targets.crops)
        terms = {"dino_local": local, "dino_global": global_}
        if targets.patches is not None:
            per_patch = batch.masks_weight, len(batch.masks)
            terms["ibot"] = cosine_patch_loss(views.patch_logits, targets.patches, *per_patch)
        return terms

    def _to_targets(
        self, center: str, logits: Float[Tensor, "rows P"], temp: float, real: Bool[Tensor, " rows"] | None = None
    ) -> Float32[Tensor, "rows P"]:
        del center, temp, real  # features are their own targets
        return logits.float()

    def _logits(
        self, network: nn.ModuleDict, cls: Float[Tensor, "rows D"], patches: Float[Tensor, "M D"]
    ) -> tuple[Float[Tensor, "rows P"] | None, Float[Tensor, "M P"] | None]:
        """Unit features of crops and of patches in place of prototype logits."""
        ibot = self.config.ibot
        if not ibot.loss_weight:
            return _unit(network["projector"], cls), None
        if ibot.separate_head:
            return _unit(network["projector"], cls), _unit(network["patch_projector"], patches)
        of_crops, of_patches = _unit(network["projector"], torch.cat([cls, patches])).split([len(cls), len(patches)])
        return of_crops, of_patches


def _unit(head: nn.Module, tokens: Float[Tensor, "rows D"]) -> Float[Tensor, "rows P"]:
    return cast("DINOHead", head).bottleneck(tokens)
