# SPDX-License-Identifier: Apache-2.0
"""The learned position table at another patch grid, as two small matrix products; used by `vision_transformer.py`.

Bicubic resizing is linear and separable: out = R_h @ table @ R_w^T with one matrix an axis. Written so it runs on
any device, is differentiable, and survives `torch.jit.trace` and `torch.export`, also with dynamic sizes.
"""

from functools import lru_cache
from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opendino.errors import ModelError

Grid = tuple[int, int]
"""(h, w): patches down and across."""


def resize_pos_embed(
    pos_embed: Float[Tensor, "1 table D"],
    grid: Grid,
    *,
    offset: float,
    antialias: bool,
    source: Grid | None = None,
) -> Float[Tensor, "1 tokens D"]:
    """Resize a position table to a patch grid; the first entry (CLS) is passed on as it is.

    Three published variants: official plain models offset 0.1, antialias False; official register models
    offset 0, antialias True; transformers' plain models offset 0, antialias False.

    Args:
        pos_embed: table of 1 + N entries, CLS first; computed in float32, returned in its own dtype.
        grid: (h, w) wanted.
        offset: added to h and w when the sampling step is computed: step = source / (wanted + offset).
        antialias: low-pass when shrinking (cubic a = -0.5); without it the plain cubic (a = -0.75).
        source: grid the table was made for; None means square.

    Returns:
        Table of 1 + h * w entries; `pos_embed` itself where the grid is already the source.

    Raises:
        ModelError: the table does not hold 1 + source entries.

    Source: official `models/vision_transformer.py`, interpolate_pos_encoding; equals
        torch.nn.functional.interpolate(mode="bicubic", align_corners=False).
    Differs: non-square source grids work.
    """
    source = _source_grid(pos_embed, source)
    if all(type(n) is int for n in grid) and tuple(grid) == source:
        return pos_embed
    symbolic = torch.jit.is_tracing() or torch.compiler.is_compiling()
    shift = _offset_unless_same(grid, source, offset) if symbolic else offset
    build = _build_matrix if symbolic or type(pos_embed) not in (Tensor, nn.Parameter) else _cached_matrix
    rows, columns = (
        build(n_in, n_out, n_in / (n_out + shift), antialias, pos_embed.device)
        for n_in, n_out in zip(source, grid, strict=True)
    )
    if not torch.is_autocast_enabled(pos_embed.device.type):
        return _apply(pos_embed, rows, columns, source)
    with torch.autocast(pos_embed.device.type, enabled=False):
        return _apply(pos_embed, rows, columns, source)


def _source_grid(pos_embed: Tensor, source: Grid | None) -> Grid:
    if source is not None and torch.jit.is_tracing():  # the shape is a tensor here and cannot be looked at
        return source
    entries = int(pos_embed.shape[1]) - 1
    side = isqrt(entries)
    source = source or (side, side)
    if source[0] * source[1] != entries:
        raise ModelError(
            f"resize_pos_embed: a table of {entries} patch positions does not fit a grid of {source[0]}x{source[1]}; "
            "pass the grid it was made for as source"
        )
    return source


def _apply(
    pos_embed: Float[Tensor, "1 table D"], rows: Float[Tensor, "h sh"], columns: Float[Tensor, "w sw"], source: Grid
) -> Float[Tensor, "1 tokens D"]:
    cls, patches = pos_embed[:, :1], pos_embed[0, 1:]
    D = patches.shape[-1]
    table = patches.to(rows.dtype).reshape(source[0], source[1] * D)
    table = (rows @ table).reshape(-1, source[1], D)  # [h, sw, D]
    table = columns @ table  # [h, w, D]
    return torch.cat([cls, table.reshape(1, -1, D).to(pos_embed.dtype)], dim=1)


def _build_matrix(
    n_in: int, n_out: int, step: float | Tensor, antialias: bool, device: torch.device
) -> Float[Tensor, "n_out n_in"]:
    """Weights of one axis: row i says how output i is made of the inputs; computed in PyTorch's own order."""
    step = (
        step.to(device, torch.float32)
        if isinstance(step, Tensor)
        else torch.tensor(step, dtype=torch.float32, device=device)
    )
    centre = step * (torch.arange(n_out, dtype=torch.float32, device=device) + 0.5)[:, None]
    if antialias:
        taps = torch.arange(n_in, dtype=torch.float32, device=device)
        weights = _cubic((taps - centre + 0.5) / step.clamp(min=1.0), -0.5)
        weights = weights / weights.sum(dim=1, keepdim=True)
    else:
        taps = torch.arange(-2, n_in + 2, dtype=torch.float32, device=device)
        weights = _cubic(taps - (centre - 0.5), -0.75)
        # taps outside the table read its border: their weight goes to the first and last column
        first = F.pad(weights[:, :2].sum(dim=1, keepdim=True), (0, n_in - 1))
        last = F.pad(weights[:, -2:].sum(dim=1, keepdim=True), (n_in - 1, 0))
        weights = first + weights[:, 2:-2] + last
    # float32 products on CUDA may be rounded to TF32 by a switch of the caller's; float64 ones never are
    return weights.double() if device.type == "cuda" else weights


@lru_cache(maxsize=64)
def _cached_matrix(n_in: int, n_out: int, step: float, antialias: bool, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return _build_matrix(n_in, n_out, step, antialias, device)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel, zero from distance 2 on; rounded as PyTorch's, factor by factor."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _offset_unless_same(grid: Grid, source: Grid, offset: float) -> Tensor:
    """The no-resize shortcut for sizes unknown while tracing: without offset the same grid resizes to itself."""
    # Sizes are tensors to the tracer, which would take a tensor made of one anew for a constant.
    h, w = (n if isinstance(n, Tensor) else torch.scalar_tensor(n) for n in grid)
    # In float64, so that the step is rounded once, as that of Python's numbers is.
    return torch.where((h == source[0]) & (w == source[1]), 0.0, offset).double()
