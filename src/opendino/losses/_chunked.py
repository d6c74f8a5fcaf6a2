# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of prototype logits that are never there all at once: the last layer and the loss in one.

Logits of 65,536 prototypes and more are the largest thing in a step's memory. Here a block of prototypes at a time is
multiplied, used and forgotten, its weight normalisation too; the backward pass multiplies it again. The same loss of
logits is in `_cross_entropy.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from opendino.onednn import product

LOGITS_AT_ONCE = {"cpu": 2**20, "cuda": 2**25}
"""Logits of a block by kind of device: 4 MiB in float32 stay in a CPU's last cache, 128 MiB keep a GPU busy."""

WEIGHTS_AT_ONCE = {"cpu": 2**19}
"""Numbers of a block's prototypes by kind of device: 2 MiB stay in a CPU's cache, where rows are few as well."""


class LastLayer(NamedTuple):
    """Prototypes as the head holds them: row k of the weight is g[k] * v[k] / |v[k]|."""

    v: Float[Tensor, "K d"]
    g: Float[Tensor, "K 1"]


class Wanted(NamedTuple):
    """What is wanted of some rows in a row.

    Attributes:
        targets: weights of the prototypes, not differentiated; a row need not sum to one.
        which: row of `targets` for each of the rows; None where they are in order.
    """

    targets: Float[Tensor, "T K"]
    which: Int64[Tensor, " rows"] | None = None

    def of(self, block: slice) -> Float[Tensor, "rows k"]:
        """What is wanted of the rows, of a block of prototypes."""
        targets = self.targets[:, block]
        return targets if self.which is None else targets.index_select(0, self.which)

    def __len__(self) -> int:
        return len(self.targets if self.which is None else self.which)


def chunked_cross_entropy(
    x: Float[Tensor, "rows d"], last: LastLayer, wanted: Sequence[Wanted], temp: float
) -> Float32[Tensor, " rows"]:
    """Cross-entropy of each row, in nats, of the logits that the last layer gives of `x`, against its row of targets.

    Besides the targets no matrix of rows by prototypes is held in either pass, and besides its gradient no second
    weight. Under autocast products are of its type, and all else is float32, as where the logits are there.

    Args:
        x: what the last layer is given.
        last: its parameters.
        wanted: of the rows of `x`, the first ones first; targets of several terms stay where they are.
        temp: the student's temperature, above 0.
    """
    detached = tuple(Wanted(one.targets.detach(), one.which) for one in wanted)
    return _ChunkedCrossEntropy.apply(x, last.v, last.g, detached, temp)


@dataclass(frozen=True)
class Unprojected:
    """Logits that are not there yet: rows that the last layer would be given, and the layer.

    As far as methods take logits apart, so do these. `_cross_entropy.py` takes either.
    """

    rows: Float[Tensor, "*axes d"]
    last: LastLayer

    @property
    def shape(self) -> torch.Size:
        """That of the logits."""
        return torch.Size((*self.rows.shape[:-1], len(self.last.v)))

    def __getitem__(self, places: slice) -> "Unprojected":
        return Unprojected(self.rows[places], self.last)

    def split(self, sizes: list[int]) -> list["Unprojected"]:
        """Parts along the first axis."""
        return [Unprojected(part, self.last) for part in self.rows.split(sizes)]

    def unflatten(self, dim: int, sizes: tuple[int, ...]) -> "Unprojected":
        """An axis as several; `dim` is counted from the front."""
        return Unprojected(self.rows.unflatten(dim, sizes), self.last)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  torch's own
        x: Tensor,
        v: Tensor,
        g: Tensor,
        wanted: tuple[Wanted, ...],
        temp: float,
    ) -> Float32[Tensor, " rows"]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        ctx.temp, ctx.dtype, ctx.which = temp, dtype, [one.which for one in wanted]
        with torch.autocast(device, enabled=False):
            factor = x.to(dtype)
            log_sum = torch.full((len(x),), -torch.inf, device=x.device)
            met, mass = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
            for block in _blocks(x, v):
                weight = v[block] * (g[block] / v[block].norm(dim=1, keepdim=True))
                logits = product(factor, weight.to(dtype)).float().div_(temp)
                for rows, one in _parts(wanted):
                    targets = one.of(block).float()
                    met[rows] += (targets * logits[rows]).sum(dim=1)
                    mass[rows] += targets.sum(dim=1)
                log_sum = torch.logaddexp(log_sum, torch.logsumexp(logits, dim=1))
        ctx.save_for_backward(x, v, g, log_sum, mass, *[one.targets for one in wanted])
        return mass * log_sum - met

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # pyrefly: ignore[bad-override]
        (grad,) = grad_outputs
        x, v, g, log_sum, mass, *targets = ctx.saved_tensors
        wanted = [Wanted(*one) for one in zip(targets, ctx.which, strict=True)]
        if torch.is_grad_enabled():  # the gradient is to be differentiated: by operations that can be
            return *_slopes_with_graph(x, v, g, wanted, ctx.temp, ctx.dtype, grad), None, None
        with torch.autocast(x.device.type, enabled=False):
            factor = x.to(ctx.dtype)
            of_x = torch.zeros(x.shape, device=x.device)
            of_v, of_g = torch.empty_like(v), torch.empty_like(g)
            for block in _blocks(x, v):
                direction, length = v[block], v[block].norm(dim=1, keepdim=True)
                weight = (direction * (g[block] / length)).to(ctx.dtype)
                slope = product(factor, weight).float().div_(ctx.temp)
                # softmax times the targets' mass, less the targets, times what comes from above
                slope.sub_(log_sum[:, None]).exp_().mul_(mass[:, None])
                for rows, one in _parts(wanted):
                    slope[rows].sub_(one.of(block))
                slope = slope.mul_((grad / ctx.temp)[:, None]).to(ctx.dtype)
                of_x += product(slope, weight.t())
                of_weight = product(slope.t(), factor.t()).to(v.dtype)
                # lengthwise is the magnitude's part, the rest turns the direction
                along = torch.linalg.vecdot(of_weight, direction, dim=1)[:, None] / length
                of_g[block] = along
                of_v[block] = of_weight.addcmul_(direction, along / length, value=-1).mul_(g[block] / length)
        return of_x.to(x.dtype), of_v, of_g, None, None


def _slopes_with_graph(
    x: Float[Tensor, "rows d"],
    v: Float[Tensor, "K d"],
    g: Float[Tensor, "K 1"],
    wanted: Sequence[Wanted],
    temp: float,
    dtype: torch.dtype,
    grad: Float32[Tensor, " rows"],
) -> list[Tensor | None]:
    """Gradients of `x`, `v` and `g`, all prototypes at once; None of those that need none."""
    with torch.autocast(x.device.type, enabled=False):
        weight = (v * (g / v.norm(dim=1, keepdim=True))).to(dtype)
        logits = (x.to(dtype) @ weight.t()).float() / temp
        targets = torch.cat([one.of(slice(0, len(v))).float() for one in wanted])
        losses = targets.sum(dim=1) * logits.logsumexp(dim=1) - (targets * logits).sum(dim=1)
        given = [one for one in (x, v, g) if one.requires_grad]
        found = iter(torch.autograd.grad(losses, given, grad, create_graph=True))
        return [next(found) if one.requires_grad else None for one in (x, v, g)]


def _parts(wanted: Sequence[Wanted]) -> Iterator[tuple[slice, Wanted]]:
    """Which rows each is of."""
    first = 0
    for one in wanted:
        yield slice(first, first + len(one)), one
        first += len(one)


def _blocks(x: Float[Tensor, "rows d"], v: Float[Tensor, "K d"]) -> list[slice]:
    """Blocks of prototypes, in their order."""
    K, device = len(v), x.device.type
    logits = LOGITS_AT_ONCE.get(device, 2**25) // max(len(x), 1)
    size = min(max(min(logits, WEIGHTS_AT_ONCE.get(device, 2**62) // v.shape[1]), 256), K)
    return [slice(first, min(first + size, K)) for first in range(0, K, size)]
