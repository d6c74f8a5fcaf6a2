# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth that computes a residual branch for a random subset of the batch only; used by `block.py`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opendino.layers.followed import is_followed
from opendino.layers.packing import Groups, starts


def kept_rows(rows: int, rate: float) -> int:
    """Rows of a batch whose residual is computed: the floor of rows * (1 - rate), at least one."""
    return max(int(rows * (1 - rate)), 1)


def token_positions(rows: Int[Tensor, " kept"], tokens: int, start: int) -> Int[Tensor, " kept_tokens"]:
    """Positions in a packed sequence of all tokens of `rows`, in a group of `tokens` each that begins at `start`."""
    return (rows[:, None] * tokens + torch.arange(start, start + tokens, device=rows.device)).flatten()


class Subset(NamedTuple):
    """The images of each group of a packed sequence whose residual is computed.

    Attributes:
        chosen: their rows in each group.
        groups: (B, T) of each group, of all images.
    """

    chosen: tuple[Int[Tensor, " kept"], ...]
    groups: Groups

    @property
    def kept_groups(self) -> Groups:
        """(kept, T) of each group."""
        return tuple((len(rows), tokens) for rows, (_, tokens) in zip(self.chosen, self.groups, strict=True))

    @property
    def scales(self) -> list[float]:
        """What the residual of each group is worth, so that its expectation is kept."""
        return [images / kept for (images, _), (kept, _) in zip(self.groups, self.kept_groups, strict=True)]

    def positions(self) -> Int[Tensor, " kept_tokens"]:
        """Where the tokens of the chosen images stand in the packed sequence."""
        rows = zip(self.chosen, self.groups, starts(self.groups), strict=True)
        return torch.cat([token_positions(chosen, tokens, start) for chosen, (_, tokens), start in rows])

    def places(self, wanted: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, " n"]:
        """Where wanted tokens stand among those of the chosen images.

        Those of an image that is not chosen are looked up in another one, and worth nothing: how many there are does
        not depend on the draw, so nothing waits for a GPU.

        Args:
            wanted: of each group, places of tokens in it, image after image.
        """
        found = []
        groups = zip(wanted, self.chosen, self.groups, starts(self.kept_groups), strict=True)
        for some, chosen, (images, tokens), start in groups:
            slots = torch.zeros(images, dtype=torch.long, device=some.device)
            slots[chosen] = torch.arange(len(chosen), device=some.device)
            found.append(start + slots[some // tokens] * tokens + some % tokens)
        return torch.cat(found)

    def worth(self, wanted: Sequence[Int[Tensor, " _"]], dtype: torch.dtype) -> Float[Tensor, "n 1"]:
        """What the residual of wanted tokens is multiplied by; 0 where their image is not chosen."""
        found = []
        for some, chosen, (images, tokens), scale in zip(wanted, self.chosen, self.groups, self.scales, strict=True):
            of_images = torch.zeros(images, dtype=dtype, device=some.device).index_fill(0, chosen, scale)
            found.append(of_images[some // tokens])
        return torch.cat(found)[:, None]


def draw(groups: Groups, rate: float, device: torch.device) -> Subset:
    """Choose the images of each group whose residual is computed, anew at each call."""
    rows = [torch.randperm(images, device=device)[: kept_rows(images, rate)] for images, _ in groups]
    return Subset(tuple(rows), groups)


def residual_on_subset(
    x: Float[Tensor, "packed D"],
    groups: Groups,
    rate: float,
    branch: Callable[[Float[Tensor, "kept D"], Groups], Float[Tensor, "kept D"]],
) -> Float[Tensor, "packed D"]:
    """Add `branch` to a random subset of the rows of each group, scaled so that its expectation is kept.

    Time and memory of the branch shrink by about `rate`. The subset is drawn anew per call and per group.

    Args:
        x: packed tokens.
        groups: (B, T) of each group in `x`.
        rate: share of rows left out, in (0, 1).
        branch: residual of packed tokens and their groups.

    Source: Oquab et al. 2023, section 5 "Efficient stochastic depth"; official `layers/block.py`, list path.
    Differs: one index over the packed sequence in place of one gather and one scatter a group; a single
        batch goes the same way at any rate (officially only above 0.1).
    """
    subset = draw(groups, rate, x.device)
    index, kept, scales = subset.positions(), subset.kept_groups, subset.scales
    residual = branch(x.index_select(0, index), kept).to(x.dtype)
    if len(set(scales)) == 1:
        return _add_at(x, index, residual, scales[0])
    weights = torch.cat([residual.new_full((r * t, 1), s) for (r, t), s in zip(kept, scales, strict=True)])
    return _add_at(x, index, residual * weights)


def _add_at(
    x: Float[Tensor, "packed D"], index: Int[Tensor, " kept"], source: Float[Tensor, "kept D"], scale: float = 1.0
) -> Float[Tensor, "packed D"]:
    if is_followed():
        return x.index_add(0, index, source, alpha=scale)
    return _AddAt.apply(x, index, source, scale)


class _AddAt(torch.autograd.Function):
    """`x.index_add(0, index, source, alpha=scale)`, which keeps for its backward pass the index alone.

    PyTorch's own keeps the source too, of which it needs no more than the shape: in bfloat16 training a sixth of what
    a block keeps.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:  # noqa: ANN401  # pyrefly: ignore[bad-override]
        x, index, source, scale = args
        ctx.save_for_backward(index)
        ctx.scale = scale
        return x.index_add(0, index, source, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # pyrefly: ignore[bad-override]
        (grad,) = grad_outputs
        (index,) = ctx.saved_tensors
        if not ctx.needs_input_grad[2]:
            return grad, None, None, None
        of_source = grad.index_select(0, index)
        return grad, None, of_source if ctx.scale == 1 else of_source * ctx.scale, None
