# SPDX-License-Identifier: Apache-2.0
"""The linear depth head: each patch, with CLS beside it, spreads over bins of depth; `dpt.py` is the larger decoder."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_UPSAMPLE = 4
_FLOOR = 0.1


class LinearDepthHead(nn.Module):
    """Depth as the mean of evenly spaced bins, weighted by what a 1x1 convolution says of each.

    Args:
        dim: width of the features D.
        layers: how many maps are put side by side, each with its CLS: 1 or 4 in the published heads.
        min_depth: first bin, in the data's unit.
        max_depth: last bin; that of the data, whatever a published file was trained for.
        bins: number of bins.

    Source: paper, section 7.4; official `eval/depth/models/decode_heads/linear_head.py`; its name `conv_depth`.
    Differs: the convolution comes before the enlargement by 4, which gives the same numbers sixteen times cheaper.
    """

    def __init__(self, dim: int, layers: int, min_depth: float, max_depth: float, bins: int = 256) -> None:
        super().__init__()
        self.min_depth, self.max_depth, self.bins = min_depth, max_depth, bins
        self.conv_depth = nn.Conv2d(2 * dim * layers, bins, 1)
        nn.init.normal_(self.conv_depth.weight, std=0.01)
        nn.init.constant_(self.conv_depth.bias, 0.0)  # pyrefly: ignore[bad-argument-type]  a convolution has one

    def forward(self, maps: Sequence[tuple[Tensor, Tensor]]) -> Float[Tensor, "B 1 h4 w4"]:
        """Depth at four times the resolution of the patches.

        Args:
            maps: of each layer the patches [B, D, h, w] and CLS [B, D].
        """
        x = torch.cat([part for patches, cls in maps for part in (patches, cls[..., None, None].expand_as(patches))], 1)
        size = (_UPSAMPLE * x.shape[2], _UPSAMPLE * x.shape[3])
        logits = F.interpolate(self.conv_depth(x), size, mode="bilinear", align_corners=False)
        weights = logits.relu() + _FLOOR
        bins = torch.linspace(self.min_depth, self.max_depth, self.bins, device=x.device).to(weights.dtype)
        return torch.einsum("bkhw,k->bhw", weights / weights.sum(dim=1, keepdim=True), bins)[:, None]


def layers_of(depth: int, count: int) -> list[int]:
    """Published numbers of the layers that a head reads, counted from 0.

    The last one; or four: 3, 6, 9, 12 of 12, 5, 12, 18, 24 of 24, 10, 20, 30, 40 of 40; of other depths the ends of
    four equal parts.
    """
    if count == 1:
        return [depth - 1]
    published = {12: [2, 5, 8, 11], 24: [4, 11, 17, 23], 40: [9, 19, 29, 39]}
    return published.get(depth, [round(depth * (i + 1) / 4) - 1 for i in range(4)])
