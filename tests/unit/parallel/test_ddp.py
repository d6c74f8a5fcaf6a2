# SPDX-License-Identifier: Apache-2.0
"""Alone in its group; two processes are in tests/integration/test_processes.py."""

import torch
import torch.distributed as dist
from torch import nn

from opendino.parallel import ddp


def parameters():
    made = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))]
    made[0].grad, made[1].grad = torch.arange(6.0).view(3, 2), torch.ones(5)
    return made


def test_gradients_come_back_in_their_places(monkeypatch):
    """Two equal processes, played by one: sums are doubled on the way, buckets are of four numbers."""

    def doubled(tensor, **_):
        tensor.mul_(2)

    monkeypatch.setattr(dist, "all_reduce", doubled)
    monkeypatch.setattr(ddp, "world_size", lambda: 2)
    monkeypatch.setattr(ddp, "BUCKET", 4)
    found = parameters()
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    ddp.average_gradients([*found, frozen])
    assert found[0].grad.equal(torch.arange(6.0).view(3, 2))
    assert found[1].grad.equal(torch.ones(5))
    assert found[2].grad is None
    assert frozen.grad is None


def test_what_only_others_have_counts_as_zero(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **_: (tensor.add_(4), None)[1])
    monkeypatch.setattr(ddp, "world_size", lambda: 2)
    monkeypatch.setattr(ddp, "all_reduce_max", lambda here: torch.ones_like(here))
    found = parameters()
    ddp.average_gradients(found)
    assert found[2].grad.equal(torch.full((2,), 2.0))
    assert found[1].grad.equal(torch.full((5,), 2.5))


def test_buckets_hold_one_kind():
    gradients = [torch.zeros(3), torch.zeros(3), torch.zeros(3, dtype=torch.float64)]
    assert [len(bucket) for bucket in ddp._buckets(gradients)] == [2, 1]
