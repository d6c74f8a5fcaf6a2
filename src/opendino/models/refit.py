# SPDX-License-Identifier: Apache-2.0
"""A backbone for other images than it was trained on: a position table of another size, other channels.

Nothing else of the weights changes, and both keep what the backbone says where old and new images can be compared:
the resized table is what the backbone resizes on the fly for that size, and an image whose channels are all alike
gives the same tokens as before, whatever the number of channels and their normalisation.
"""

import copy
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from opendino.errors import ModelError
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer

ChannelRule = Literal["auto", "mean", "repeat", "keep"]
"""How a patch embedding is fitted to other channels, see `mix_channels`."""


def refit(
    backbone: VisionTransformer, size: int | tuple[int, int] | None, spec: InputSpec, rule: ChannelRule = "auto"
) -> VisionTransformer:
    """A copy with a position table for images of `size` pixels and a patch embedding for `spec.channels` channels.

    Args:
        backbone: stays as it is.
        size: side, or (H, W), that the table is laid out for from now on, pixels; None leaves it.
        spec: what images come from now on.
        rule: of `mix_channels`; not read where the channels stay as many as they are.

    Raises:
        ModelError: the size is no multiple of the patch, or the rule cannot make so many channels.
    """
    if size is None:
        fitted = copy.deepcopy(backbone)
    else:
        fitted = backbone.bake(size)
        fitted.baked = False  # the table is a start like any other: it learns, and is resized for other sizes
    if spec.channels != backbone.in_chans:
        _set_channels(fitted, backbone.input_spec, spec, rule)
    fitted.input_spec = spec
    return fitted


def mix_channels(old: int, new: int, rule: ChannelRule = "auto") -> Float64[Tensor, "new old"]:
    """What share of each old channel's weights each new channel gets; the shares of an old channel sum to 1.

    | rule   | weights of new channel j                                                                    |
    |--------|---------------------------------------------------------------------------------------------|
    | mean   | the sum of all old ones, over the number of new ones; for one new channel, their sum        |
    | repeat | those of old channel j mod C, over the number of new channels that get them                 |
    | keep   | those of old channel j, and zero from channel C on: what is added counts for nothing at first |
    | auto   | repeat where channels are added, mean where they become fewer                               |

    Args:
        old: number of channels C of the weights.
        new: number of channels wanted.
        rule: a row of the table.

    Raises:
        ModelError: "repeat" and "keep" would leave old channels out.

    Source: timm's `adapt_input_conv` sums for one channel and repeats for more than three; "mean" is the inflation of
        Carreira & Zisserman 2017 over channels; "keep" is the zero start of bands added in remote sensing.
    Differs: timm scales what it repeats by C over the number of new channels, which is the same only where that is a
        multiple of C, and refuses to go from C to fewer, but for 3 to 1.
    """
    if rule in ("keep", "repeat") and new < old:
        raise ModelError(
            f"adapt.channels = {rule} cannot fit weights for {old} channels to {new}: some would be left out; "
            "use mean, which puts all of them together"
        )
    mixing = torch.zeros(new, old, dtype=torch.float64)
    if rule == "mean" or new < old:
        return mixing + 1 / new
    if rule == "keep":
        mixing[torch.arange(old), torch.arange(old)] = 1
        return mixing
    mixing[torch.arange(new), torch.arange(new) % old] = 1
    return mixing / mixing.sum(dim=0)


def _set_channels(backbone: VisionTransformer, before: InputSpec, after: InputSpec, rule: ChannelRule) -> None:
    """Give the patch embedding other channels, in place.

    Weights are mixed as they act on pixels of 0 to 1, before any normalisation, and then told the new one.
    """
    old = backbone.patch_embed.proj
    mixing = mix_channels(before.channels, after.channels, rule)
    (mean, std), (new_mean, new_std) = _statistics(before), _statistics(after)
    weight = old.weight.detach().double().cpu()
    bias = torch.zeros(len(weight), dtype=torch.float64) if old.bias is None else old.bias.detach().double().cpu()
    on_pixels = weight / std
    mixed = torch.einsum("nc,dchw->dnhw", mixing, on_pixels)
    bias = bias - (on_pixels * mean).sum(dim=(1, 2, 3)) + (mixed * new_mean).sum(dim=(1, 2, 3))
    side = backbone.patch_size
    new = nn.Conv2d(after.channels, backbone.embed_dim, side, side, device="meta")  # draws no random number
    new.weight, new.bias = (nn.Parameter(part.to(old.weight)) for part in (mixed * new_std, bias))
    backbone.patch_embed.proj, backbone.in_chans = new, after.channels


def _statistics(spec: InputSpec) -> tuple[Float64[Tensor, "C 1 1"], Float64[Tensor, "C 1 1"]]:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return mean, std
