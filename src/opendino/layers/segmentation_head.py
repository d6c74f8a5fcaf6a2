# SPDX-License-Identifier: Apache-2.0
"""The linear segmentation head: batch normalisation and a 1x1 convolution on maps of patch features."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SegmentationHead(nn.Module):
    """Logits of every patch.

    Args:
        in_channels: width of one map times the number of maps.
        classes: number of classes.

    Source: official `eval/segmentation/models/decode_heads/linear_head.py`, BNHead; its names `bn` and `conv_seg`.
    """

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv_seg = nn.Conv2d(in_channels, classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.constant_(self.conv_seg.bias, 0.0)  # pyrefly: ignore[bad-argument-type]  a convolution has one

    def forward(self, maps: Sequence[Float[Tensor, "B D h w"]]) -> Float[Tensor, "B classes h w"]:
        """Logits from maps of one size, side by side in their order."""
        return self.conv_seg(self.bn(torch.cat(list(maps), dim=1)))
