# SPDX-License-Identifier: Apache-2.0
"""The DPT decoder: four layers of a transformer, brought to four resolutions and fused from coarse to fine.

The way: CLS is worked into each patch -> 1x1 to D/8, D/4, D/2, D channels -> x4, x2, x1, /2 -> 3x3 to 256 channels ->
fusion from the coarsest on, doubling each time -> convolutions to one value. Names are the official ones.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_CHANNELS = 256
_LAYERS = 4


class _Conv(nn.Module):
    """A convolution under the name `conv`, as the official files have it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B out h w"]:
        return self.conv(x)


class _Reassemble(nn.Module):
    """Tokens of four layers as four maps, each half as fine as the one before."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = [dim // 8, dim // 4, dim // 2, dim]
        self.projects = nn.ModuleList(_Conv(dim, width, 1) for width in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
            ]
        )
        self.readout_projects = nn.ModuleList(nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU()) for _ in range(_LAYERS))

    def forward(self, maps: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        out = []
        for (patches, cls), readout, project, resize in zip(
            maps, self.readout_projects, self.projects, self.resize_layers, strict=True
        ):
            tokens = patches.permute(0, 2, 3, 1)
            tokens = readout(torch.cat([tokens, cls[:, None, None].expand_as(tokens)], dim=-1))
            out.append(resize(project(tokens.permute(0, 3, 1, 2))))
        return out


class _Residual(nn.Module):
    """Two convolutions, each behind a ReLU, beside a straight way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _Conv(_CHANNELS, _CHANNELS, 3, bias=False)
        self.conv2 = _Conv(_CHANNELS, _CHANNELS, 3, bias=False)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x + self.conv2(self.conv1(x.relu()).relu())


class _Fusion(nn.Module):
    """What came from below, with the finer map added to it, at twice the resolution."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.project = _Conv(_CHANNELS, _CHANNELS, 1)
        # The coarsest map has nothing to be added to.
        self.res_conv_unit1 = None if first else _Residual()
        self.res_conv_unit2 = _Residual()

    def forward(self, x: Float[Tensor, "B C h w"], finer: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        if finer is not None and self.res_conv_unit1 is not None:
            # The identity where sizes agree; asked for, the question would tie an export to the sizes of its example.
            finer = F.interpolate(finer, x.shape[2:], mode="bilinear", align_corners=False)
            x = x + self.res_conv_unit1(finer)
        return self.project(_doubled(self.res_conv_unit2(x)))


class _Enlarge(nn.Module):
    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        return _doubled(x)


def _doubled(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
    # A size in whole numbers: exporters follow it where a factor is a fraction to them.
    return F.interpolate(x, (2 * x.shape[2], 2 * x.shape[3]), mode="bilinear", align_corners=True)


class _Value(nn.Module):
    """One value a pixel."""

    def __init__(self) -> None:
        super().__init__()
        half = _CHANNELS // 2
        self.head = nn.Sequential(
            nn.Conv2d(_CHANNELS, half, 3, padding=1),
            _Enlarge(),
            nn.Conv2d(half, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
        )

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 H W"]:
        return self.head(x)


class DPTHead(nn.Module):
    """Depth from four layers, fused from coarse to fine.

    Args:
        dim: width of the features D, a multiple of 8.
        min_depth: added to what the last ReLU gives, so that no depth is zero.

    Source: Ranftl et al. 2021; official `eval/depth/models/decode_heads/dpt_head.py`.
    """

    def __init__(self, dim: int, min_depth: float) -> None:
        super().__init__()
        self.min_depth = min_depth
        self.reassemble_blocks = _Reassemble(dim)
        self.convs = nn.ModuleList(
            _Conv(width, _CHANNELS, 3, bias=False) for width in (dim // 8, dim // 4, dim // 2, dim)
        )
        self.fusion_blocks = nn.ModuleList(_Fusion(first=i == 0) for i in range(_LAYERS))
        self.project = _Conv(_CHANNELS, _CHANNELS, 3)
        self.conv_depth = _Value()

    def forward(self, maps: Sequence[tuple[Tensor, Tensor]]) -> Float[Tensor, "B 1 H W"]:
        """Depth at sixteen times the resolution of the patches; a little more where their number is odd.

        Args:
            maps: of four layers, first to last, the patches [B, D, h, w] and CLS [B, D].
        """
        finest_first = [conv(x) for conv, x in zip(self.convs, self.reassemble_blocks(maps), strict=True)]
        out = self.fusion_blocks[0](finest_first[-1])
        for fusion, finer in zip(list(self.fusion_blocks)[1:], finest_first[-2::-1], strict=True):
            out = fusion(out, finer)
        return self.conv_depth(self.project(out).relu()).relu() + self.min_depth
