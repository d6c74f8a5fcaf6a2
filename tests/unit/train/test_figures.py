# SPDX-License-Identifier: Apache-2.0
"""Figures of a step, and that no step waits for its device; `test_loop.py` has runs that go ahead."""

import contextlib

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from opendino.config import load
from opendino.optim.adamw import OptimConfig, adamw
from opendino.optim.param_groups import param_groups
from opendino.train import loop
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.figures import Figures, can_skip, step_if
from opendino.train.pretrain import build_feed, build_run, open_images


def made(**values):
    norms = {name: torch.tensor(value) for name, value in values.items()}
    return Figures(torch.tensor(3.0), {"dino": torch.tensor(1.0), "ibot": torch.tensor(2.0)}, norms)


def test_names_and_numbers():
    figures = made(backbone=0.5)
    figures.send()
    assert figures.read() == {"loss": 3.0, "loss/dino": 1.0, "loss/ibot": 2.0, "grad_norm/backbone": 0.5}


@pytest.mark.parametrize(("norm", "counts"), [(1.0, 1.0), (float("nan"), 0.0), (float("inf"), 0.0)])
def test_a_step_counts_if_all_is_finite(norm, counts):
    assert made(backbone=0.5, head=norm).counts() == counts


def test_a_step_that_does_not_count_leaves_parameters_moments_and_their_age():
    torch.manual_seed(0)
    networks = [nn.Linear(3, 2) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [
        adamw([{"params": list(one.parameters()), "lr": 0.1, "weight_decay": 0.1}], OptimConfig()) for one in networks
    ]
    assert all(map(can_skip, optimizers))
    x = torch.randn(4, 3)
    for number, spoilt in enumerate([False, True, False, True]):
        for one, optimizer in zip(networks, optimizers, strict=True):
            one.zero_grad()
            (one(x).square().sum() * (torch.nan if spoilt else 1)).backward()
            if optimizer is optimizers[0]:
                step_if(optimizer, torch.tensor(float(not spoilt)))
            elif not spoilt:
                optimizer.step()
        for one, other in zip(*(network.parameters() for network in networks), strict=True):
            assert torch.equal(one, other), number
    ages = [[float(state["step"]) for state in optimizer.state.values()] for optimizer in optimizers]
    assert ages == [[2.0, 2.0]] * 2
    assert not hasattr(optimizers[0], "found_inf")


def test_an_optimizer_that_is_not_fused_cannot_skip():
    assert not can_skip(torch.optim.AdamW(nn.Linear(2, 2).parameters()))


class Crossing(TorchDispatchMode):
    """Notes copies between devices that the CPU waits for."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        done = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source, kwargs = args[func is torch.ops.aten.copy_.default], kwargs or {}
            at_once = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if source.device != done.device and not at_once:
                self.waited.append((source.device, done.device, tuple(source.shape)))
        return done


def to_meta(module):
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to("meta")


@pytest.mark.parametrize(
    "words",
    [
        ["dino.centering=centering", "ibot.separate_head=true", "train.accumulate=2"],
        ["dino.centering=sinkhorn_knopp", "student.drop_path_rate=0.3", "loader.photometric=device"],
        ["dino.centering=sinkhorn_knopp", "dino.prototypes=16384"],
        ["dino.objective=coding_rate", "train.accumulate=2"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_no_step_waits_for_its_device(tiny_words, words, monkeypatch):
    """A step on the meta device, whose tensors have no values: asking one for a number, or how many of it are true,
    is an error, as is copying it to the CPU. The figures are read by one call, which is left out here."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # meta has none
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    config = load(PretrainConfig, None, [*tiny_words, "masks.pad=always", *words])
    dataset = open_images(config)
    config = fill_in(config, len(dataset))
    run = build_run(config)
    batch = next(build_feed(config, dataset, run.device, 0))
    to_meta(run.method)
    run.device, run.accumulate = torch.device("meta"), config.train.accumulate
    run.optimizer = torch.optim.AdamW(
        param_groups(run.method.student), foreach=True
    )  # torch's fused one does not know the device
    monkeypatch.setattr(loop, "step_if", lambda optimizer, _: optimizer.step())
    with Crossing() as crossing:
        for _ in range(2):
            here = batch.to("meta", non_blocking=True).finish((0.5,) * 3, (0.5,) * 3)
            loop.step_ahead(run, here)
    assert run.step == 2
    assert not crossing.waited
    with pytest.raises(Exception, match="meta"):
        loop.train_step(run, here)  # which reads its figures at once: the oracle sees it
