# SPDX-License-Identifier: Apache-2.0
"""One picture of what a training step is fed: the crops of the first images, masked patches tinted."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image
from torch import Tensor

from opendino.data.collate import PretrainBatch

GAP = 4
SIDE = 112
"""Global crops are shown with sides of at least this many pixels: smaller ones are enlarged by a whole number."""

TINT = (214, 70, 140)
"""Colour of masked patches; a quarter of the picture shows through."""


def preview(batch: PretrainBatch, mean: Sequence[float], std: Sequence[float], images: int = 8) -> Image.Image:
    """Draw the crops of a batch: one row an image, its global crops with their masks, then its local crops.

    Args:
        batch: normalised, on any device.
        mean: of each channel, as the crops were normalised.
        std: of each channel.
        images: rows of the picture at most.

    Returns:
        An RGB picture. Of images with more than three channels the first three are shown, of two the first.
    """
    large = _tint(_pixels(batch.global_crops, mean, std), batch.masks.cpu().numpy())
    small = _pixels(batch.local_crops, mean, std)
    zoom = -(-SIDE // large.shape[1])
    rows = [
        _row(large[image :: batch.images], small[image :: batch.images], zoom)
        for image in range(min(images, batch.images))
    ]
    canvas = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for number, row in enumerate(rows):
        canvas.paste(row, (0, number * row.height))
    return canvas


def _row(large: UInt8[np.ndarray, "G H W 3"], small: UInt8[np.ndarray, "L h w 3"], zoom: int) -> Image.Image:
    """Global crops side by side; local crops beside them, in as many lines as their height takes."""
    side, little = large.shape[1] * zoom, small.shape[1] * zoom
    lines = max(1, (side + GAP) // (little + GAP)) if len(small) else 1
    columns = -(-len(small) // lines)
    row = Image.new("RGB", (len(large) * (side + GAP) + columns * (little + GAP) + GAP, side + GAP), "white")
    for number, crop in enumerate(large):
        row.paste(_enlarge(crop, zoom), (GAP + number * (side + GAP), GAP))
    for number, crop in enumerate(small):
        line, column = divmod(number, columns)
        left = GAP + len(large) * (side + GAP) + column * (little + GAP)
        row.paste(_enlarge(crop, zoom), (left, GAP + line * (little + GAP)))
    return row


def _enlarge(crop: UInt8[np.ndarray, "H W 3"], zoom: int) -> Image.Image:
    return Image.fromarray(crop.repeat(zoom, axis=0).repeat(zoom, axis=1))


def _pixels(
    crops: Shaped[Tensor, "rows C H W"], mean: Sequence[float], std: Sequence[float]
) -> UInt8[np.ndarray, "rows H W 3"]:
    """Normalised crops as 8-bit colour."""
    if not len(crops):
        return np.zeros((0, 0, 0, 3), dtype=np.uint8)
    center, spread = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    values = crops.float().cpu() * spread + center
    values = values[:, :3] if values.shape[1] >= 3 else values[:, :1].expand(-1, 3, -1, -1)
    return values.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _tint(crops: UInt8[np.ndarray, "rows H W 3"], masks: Bool[np.ndarray, "rows N"]) -> UInt8[np.ndarray, "rows H W 3"]:
    """Crops with their masked patches coloured; the patch size follows from the number of patches of a square."""
    side = round(masks.shape[1] ** 0.5)
    patch = crops.shape[1] // side
    grid = masks.reshape(len(masks), side, side).repeat(patch, axis=1).repeat(patch, axis=2)
    return np.where(grid[..., None], (crops * 0.25 + np.array(TINT) * 0.75).astype(np.uint8), crops)
