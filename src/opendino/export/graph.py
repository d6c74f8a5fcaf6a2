# SPDX-License-Identifier: Apache-2.0
"""A model as a function of one tensor to a tuple of tensors, which is what tracers follow.

A graph takes normalised images [B, C, H, W] and gives `cls` [B, D], `patches` [B, N, D], and where there are registers
`registers` [B, R, D]; with a classifier `logits` [B, K], with a segmentation head its logits `segmentation`
[B, K, H, W], with a depth head `depth` [B, H, W]. Read next: `heads.py`.
"""

import torch
from torch import Tensor, nn

from opendino.checkpoint.hub import Model
from opendino.export.heads import PixelHead
from opendino.models.classifier import LinearClassifier
from opendino.models.vision_transformer import VisionTransformer


class Graph(nn.Module):
    """See the top of this file.

    Args:
        model: a backbone or a classifier, in evaluation mode.
        head: that goes on top of a backbone.

    Attributes:
        outputs: names of what it gives, in order.
    """

    def __init__(self, model: Model, head: PixelHead | None = None) -> None:
        super().__init__()
        self.model: Model = model
        self.head = head
        self.has_registers = backbone_of(model).num_register_tokens > 0
        registers = ("registers",) if self.has_registers else ()
        logits = ("logits",) if isinstance(model, LinearClassifier) else ()
        self.outputs = ("cls", "patches", *registers, *logits, *(() if head is None else (head.name,)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs in the order of their names."""
        model = self.model
        if isinstance(model, LinearClassifier):
            return self._classified(model, images)
        if self.head is not None:
            return self._with_pixels(model, self.head, images)
        found = model.forward_features(images)
        return self._parts(found["x_norm_clstoken"], found["x_norm_patchtokens"], found["x_norm_regtokens"])

    def _parts(self, cls: Tensor, patches: Tensor, registers: Tensor) -> tuple[Tensor, ...]:
        return (cls, patches, registers) if self.has_registers else (cls, patches)

    def _classified(self, model: LinearClassifier, images: Tensor) -> tuple[Tensor, ...]:
        layers = model.backbone.get_intermediate_layers(
            images, n=model.layers, return_class_token=True, return_register_tokens=True
        )
        patches, cls, registers = layers[-1]
        # As LinearClassifier.forward, on the same pass.
        logits = model.linear_head(torch.cat([*(one[1] for one in layers), patches.mean(dim=1)], dim=-1))
        return (*self._parts(cls, patches, registers), logits)

    def _with_pixels(self, backbone: VisionTransformer, head: PixelHead, images: Tensor) -> tuple[Tensor, ...]:
        last, height, width = backbone.depth - 1, images.shape[2], images.shape[3]
        wanted = sorted({*head.blocks, last})
        layers = backbone.get_intermediate_layers(
            images, n=wanted, return_class_token=True, norm=False, return_register_tokens=True
        )
        raw = dict(zip(wanted, layers, strict=True))
        normed = {number: tuple(backbone.norm(part) for part in raw[number]) for number in wanted}
        grid = (height // backbone.patch_size, width // backbone.patch_size)
        taken = [(normed if head.norm else raw)[number] for number in head.blocks]
        maps = [(one[0].transpose(1, 2).unflatten(2, grid), one[1]) for one in taken]
        patches, cls, registers = normed[last]
        return (*self._parts(cls, patches, registers), head(maps, height, width))


def backbone_of(model: Model) -> VisionTransformer:
    """The model, or what its classifier stands on."""
    return model.backbone if isinstance(model, LinearClassifier) else model
