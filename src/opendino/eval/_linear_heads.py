# SPDX-License-Identifier: Apache-2.0
"""Many linear classifiers trained at once: every learning rate on every kind of feature, in one product a kind.

Each head has its own weights, learning rate and loss; the sum of the losses gives each exactly the gradient of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from opendino.distributed import all_reduce_sum

_INIT_STD = 0.01
_ROWS_AT_ONCE = 4096

Tokens = Float[Tensor, "B LP D"]
"""CLS of the last blocks, first to last, and behind them the mean patch of the last."""


class Kind(NamedTuple):
    """What a head sees: CLS of so many of the last blocks, with the mean patch of the last or without."""

    blocks: int
    mean_patch: bool

    def select(self, tokens: Tokens) -> Float[Tensor, "B F"]:
        """The head's input.

        Source: official `eval/linear.py`, create_linear_input.
        """
        blocks = tokens[:, -1 - self.blocks : -1].flatten(1)
        return torch.cat([blocks, tokens[:, -1]], dim=1) if self.mean_patch else blocks


class Heads:
    """Linear classifiers for all pairs of a kind and a learning rate, with SGD of their own.

    Args:
        kinds: what heads see.
        lrs: peak learning rates, as they are used (already scaled to the batch).
        dim: width of a token.
        classes: number of classes.
        seed: of the first weights.
        device: where they live.
        momentum: of SGD.
        weight_decay: of SGD.

    Source: official `eval/linear.py`: weights from N(0, 0.01), bias 0, momentum 0.9, no weight decay.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        lrs: Sequence[float],
        dim: int,
        classes: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        self.kinds, self.lrs = tuple(kinds), tuple(lrs)
        self.momentum, self.weight_decay, self.classes = momentum, weight_decay, classes
        self._rates = torch.tensor(self.lrs, device=device)[:, None, None]
        generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}
        for kind in self.kinds:
            width = dim * (kind.blocks + kind.mean_patch)
            # The bias is the last column.
            weight = torch.randn(len(lrs), classes, width + 1, generator=generator) * _INIT_STD
            weight[..., -1] = 0
            self.state[_key(kind)] = weight.to(device)
            self.state[f"{_key(kind)}.momentum"] = torch.zeros_like(weight, device=device)

    def names(self) -> list[str]:
        """Names of all heads by the official rule, kinds first, then learning rates."""
        return [
            f"classifier_{kind.blocks}_blocks_avgpool_{kind.mean_patch}_lr_{lr:.5f}".replace(".", "_")
            for kind in self.kinds
            for lr in self.lrs
        ]

    def step(self, tokens: Tokens, labels: Int[Tensor, " B"], share: float) -> Float[Tensor, " heads"]:
        """One step of SGD on the mean cross-entropy of a batch; with a process group, of all processes' batches.

        Args:
            tokens: features, float32.
            labels: classes.
            share: part of the peak learning rates that the schedule has reached.

        Returns:
            The loss of every head before the step.
        """
        n = float(all_reduce_sum(torch.tensor(float(len(labels)), device=tokens.device)))
        losses = []
        for kind in self.kinds:
            x = _with_one(kind.select(tokens))
            weight = self.state[_key(kind)]
            logits = _logits(x, weight)
            losses.append(_cross_entropy(logits, labels) / n)
            # The gradient of the cross-entropy, written out: probabilities less the right answers.
            error = logits.softmax(dim=-1)
            error -= F.one_hot(labels, self.classes)[:, None]
            gradient = all_reduce_sum(torch.einsum("bhk,bf->hkf", error, x) / n)
            _sgd(weight, gradient, self.state[f"{_key(kind)}.momentum"],
                 self._rates * share, self.momentum, self.weight_decay)  # fmt: skip
        return all_reduce_sum(torch.cat(losses))

    def logits(self, tokens: Tokens, head: int) -> Float[Tensor, "n K"]:
        """Logits of one head, counted as in `names`, on the CPU."""
        kind, lr = divmod(head, len(self.lrs))
        weight = self.state[_key(self.kinds[kind])][lr : lr + 1]
        parts = [
            _logits(_with_one(self.kinds[kind].select(part.to(weight.device))), weight)[:, 0].cpu()
            for part in tokens.split(_ROWS_AT_ONCE)
        ]
        return torch.cat(parts)

    def linear(self, head: int) -> tuple[Kind, Float[Tensor, "K F"], Float[Tensor, " K"]]:
        """What a head sees, its weight and its bias."""
        kind, lr = divmod(head, len(self.lrs))
        weight = self.state[_key(self.kinds[kind])][lr]
        return self.kinds[kind], weight[:, :-1].clone(), weight[:, -1].clone()


def _key(kind: Kind) -> str:
    return f"blocks{kind.blocks}_{'patch' if kind.mean_patch else 'cls'}"


def _with_one(x: Float[Tensor, "B F"]) -> Float[Tensor, "B F1"]:
    return F.pad(x.float(), (0, 1), value=1.0)


def _logits(x: Float[Tensor, "B F"], weight: Float[Tensor, "H K F"]) -> Float[Tensor, "B H K"]:
    return (x @ weight.flatten(0, 1).T).unflatten(1, weight.shape[:2])


def _cross_entropy(logits: Float[Tensor, "B H K"], labels: Int[Tensor, " B"]) -> Float[Tensor, " H"]:
    right = logits.gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    return (logits.logsumexp(dim=2) - right).sum(dim=0)


def _sgd(weight: Tensor, gradient: Tensor, buffer: Tensor, rates: Tensor, momentum: float, weight_decay: float) -> None:
    """A step of SGD in place, each head with its own rate; the first step starts the momentum from zero."""
    if weight_decay:
        gradient = gradient.add(weight, alpha=weight_decay)
    buffer.mul_(momentum).add_(gradient)
    weight.sub_(rates * buffer)
