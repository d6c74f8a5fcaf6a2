# SPDX-License-Identifier: Apache-2.0
"""What pixel-level protocols share: maps of patch features, padding, sliding windows, published head files.

An image whose sides are no multiples of the patch is padded around its centre, never cut; what was predicted for the
padding is cut away again.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opendino.checkpoint._reading import read
from opendino.distributed import all_reduce_sum, is_main
from opendino.errors import ConversionError, ModelError
from opendino.eval.adapters import Backbone

Maps = list[tuple[Float[Tensor, "B D h w"], Float[Tensor, "B D"]]]
"""For each layer the map of its patches, and its CLS."""


def padding(height: int, width: int, multiple: int) -> tuple[int, int, int, int]:
    """Pixels to add at the left, right, top and bottom; an odd one goes to the right and the bottom.

    Source: official `CenterPadding` of the dense evaluations.
    """
    across, down = -width % multiple, -height % multiple
    return across // 2, across - across // 2, down // 2, down - down // 2


@torch.no_grad()
def feature_maps(
    backbone: Backbone,
    images: Float[Tensor, "B C H W"],
    blocks: Sequence[int],
    *,
    norm: bool = True,
    precision: str = "fp32",
) -> Maps:
    """Patch features of images of any size as maps, in float32.

    Args:
        backbone: frozen.
        images: normalised; padded with zeros (the mean colour) to multiples of the patch.
        blocks: numbers of blocks, counted from 0, in rising order.
        norm: pass them through the final norm.
        precision: of the backbone's arithmetic.

    Raises:
        ModelError: the backbone has no such block.
    """
    if max(blocks) >= backbone.depth:
        raise ModelError(
            f"features of block {max(blocks) + 1} are wanted, and the model gives those of {backbone.depth}"
        )
    padded = F.pad(images, padding(images.shape[2], images.shape[3], backbone.patch_size))
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        layers = backbone.get_intermediate_layers(
            padded, n=list(blocks), reshape=True, return_class_token=True, norm=norm
        )
    return [(patches.float(), cls.float()) for patches, cls in layers]


def to_pixels(values: Float[Tensor, "B K h w"], height: int, width: int, patch_size: int) -> Float[Tensor, "B K H W"]:
    """Values of the patches of a padded image, bilinearly enlarged and cut to the image.

    Differs: the official code stretches the values of the padded image over the image.
    """
    left, right, top, bottom = padding(height, width, patch_size)
    whole = F.interpolate(values, (height + top + bottom, width + left + right), mode="bilinear", align_corners=False)
    return whole[..., top : top + height, left : left + width]


def slide(
    predict: Callable[[Tensor], Tensor], images: Float[Tensor, "B C H W"], window: int, stride: int
) -> Float[Tensor, "B K H W"]:
    """Mean prediction over windows that cover the images; the last one of a row ends at the edge.

    Args:
        predict: images of at most `window` pixels a side to values of every pixel.
        images: of any size.
        window: side in pixels.
        stride: pixels from one window to the next.

    Source: mmsegmentation's sliding inference, as the official configurations use it.
    """
    height, width = images.shape[2:]
    total, count = None, images.new_zeros(1, 1, height, width)
    for top in _starts(height, window, stride):
        for left in _starts(width, window, stride):
            place = (..., slice(top, top + window), slice(left, left + window))
            values = predict(images[place])
            if total is None:
                total = values.new_zeros(*values.shape[:2], height, width)
            total[place] += values
            count[place] += 1
    if total is None:
        raise ModelError(f"an image of {height}x{width} pixels has no window")
    return total / count


def _starts(length: int, window: int, stride: int) -> list[int]:
    steps = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(step * stride, length - window), 0) for step in range(steps)]


def load_head(head: nn.Module, path: Path | str) -> None:
    """Fill a head from a published file, or one of ours; every name and shape has to fit.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
        ConversionError: it is another head; the message names what differs.
    """
    content = read(Path(path))
    content = content.get("state_dict", content)
    own = head.state_dict()
    prefix = "decode_head."
    state = {name.removeprefix(prefix): value for name, value in content.items() if isinstance(value, Tensor)}
    missing, left = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or left:
        raise ConversionError(
            f"{path}: is not a {type(head).__name__} (missing {missing[:3] or 'nothing'}, left over "
            f"{left[:3] or 'nothing'}); give the head that the settings describe"
        )
    wrong = [name for name in state if state[name].shape != own[name].shape]
    if wrong:
        raise ConversionError(
            f"{path}: {wrong[0]} has shape {tuple(state[wrong[0]].shape)}, and {tuple(own[wrong[0]].shape)} is wanted "
            "for this backbone, these layers and this number of classes"
        )
    head.load_state_dict({**own, **state}, strict=True)


@torch.no_grad()
def agree(head: nn.Module) -> None:
    """Give every process the head of the main one: heads that learned alike may differ by rounding on some devices."""
    for tensor in head.state_dict().values():
        tensor.copy_(all_reduce_sum(tensor if is_main() else torch.zeros_like(tensor)))


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode; afterwards they are in the mode they were in."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
