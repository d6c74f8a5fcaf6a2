# SPDX-License-Identifier: Apache-2.0
"""A backbone with a linear classifier on top, as published for ImageNet-1k; `vision_transformer.py` is the backbone."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opendino.axes import Images
from opendino.errors import ModelError
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer


class LinearClassifier(nn.Module):
    """One linear layer on [CLS of the last blocks, mean patch of the last block], all after the final norm.

    Args:
        backbone: gives the features.
        classes: number of classes, 1000 in the published heads.
        layers: how many of the last blocks give their CLS: 1 or 4 in the published heads.
        labels: names of the classes, in order; None where they are not known.

    Raises:
        ModelError: the backbone has fewer blocks, or the labels are not one a class.

    Source: official `hub/classifiers.py`; keys `backbone`, `linear_head`. transformers' `*ForImageClassification` is
        the same with one layer.
    """

    def __init__(
        self, backbone: VisionTransformer, classes: int = 1000, layers: int = 4, labels: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        if not 1 <= layers <= backbone.depth:
            raise ModelError(f"LinearClassifier: layers={layers} of a backbone of {backbone.depth} blocks; use 1 or 4")
        if labels is not None and len(labels) != classes:
            raise ModelError(
                f"LinearClassifier: {len(labels)} labels for {classes} classes; give one for each, or none"
            )
        self.backbone, self.layers = backbone, layers
        self.labels = None if labels is None else tuple(labels)
        self.linear_head = nn.Linear((layers + 1) * backbone.embed_dim, classes)

    @property
    def input_spec(self) -> InputSpec:
        """What images the backbone expects."""
        return self.backbone.input_spec

    def forward(self, x: Images) -> Float[Tensor, "B classes"]:
        """Logits of normalised images."""
        taken = self.backbone.get_intermediate_layers(x, n=self.layers, return_class_token=True)
        patches = taken[-1][0]
        return self.linear_head(torch.cat([*(cls for _, cls in taken), patches.mean(dim=1)], dim=-1))
