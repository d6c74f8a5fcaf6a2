# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import nn

from opendino.errors import ConfigError
from opendino.optim.adamw import OptimConfig, adamw, optim_schedules, peak_lr
from opendino.optim.param_groups import param_groups, set_schedule


def test_published_peaks():
    assert peak_lr(OptimConfig(base_lr=4e-3), 2048) == pytest.approx(5.6568542e-3, rel=1e-8)
    assert peak_lr(OptimConfig(base_lr=2e-4), 3072) == pytest.approx(3.4641016e-4, rel=1e-8)


def test_other_scalings():
    assert peak_lr(OptimConfig(base_lr=1e-3, lr_scaling="linear", lr_reference_batch=256), 64) == 2.5e-4
    assert peak_lr(OptimConfig(base_lr=1e-3, lr_scaling="none"), 64) == 1e-3


def test_defaults_are_the_published_short_recipe():
    schedules = optim_schedules(OptimConfig(), 125_000, 2048)
    assert schedules.lr(1250) == pytest.approx(5.6573068e-4, rel=1e-7)
    assert schedules.lr(62_500) == pytest.approx(3.3199915e-3, rel=1e-7)
    assert schedules.weight_decay(62_500) == pytest.approx(0.22)
    assert schedules.last_layer_lr(1249) == 0
    assert schedules.last_layer_lr(1250) == schedules.lr(1250)


def test_a_constant_rate_cools_down():
    config = OptimConfig(
        schedule="constant", cooldown=0.25, warmup=10, freeze_last_layer=20, lr_scaling="none", min_lr=0.0
    )
    schedules = optim_schedules(config, 100, 64)
    assert [schedules.lr(step) for step in (0, 9, 75)] == [0, 4e-3, 4e-3]
    assert schedules.lr(99) == pytest.approx(4e-3 / 25)
    assert [schedules.last_layer_lr(step) for step in (19, 20)] == [0, 4e-3]
    with pytest.raises(ConfigError, match=r"optim\.cooldown = 300 steps is longer"):
        optim_schedules(OptimConfig(cooldown=300), 100, 64)


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"optim\.warmup = 100000 steps is longer than the run of 500"):
        optim_schedules(OptimConfig(warmup=100_000), 500, 64)
    with pytest.raises(ConfigError, match=r"optim\.freeze_last_layer = 1250 steps is longer"):
        optim_schedules(OptimConfig(freeze_last_layer=1250), 500, 64)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_lr": -1.0},
        {"clip_grad": math.nan},
        {"lr_reference_batch": 0},
        {"weight_decay": (-0.1, 0.4)},
        {"weight_decay": (math.nan, 1.0)},
        {"weight_decay": (0.1, math.inf)},
        {"warmup": math.nan},
        {"freeze_last_layer": -1},
        {"betas": (0.9, 1.0)},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"optim.{next(iter(wrong))} = "):
        OptimConfig(**wrong)


def test_two_steps_by_hand():
    layer = nn.Linear(2, 1)
    weight = torch.tensor([[1.0, -2.0]])
    layer.weight.data.copy_(weight)
    layer.bias.data.fill_(0.5)
    optimizer = adamw(param_groups(layer), OptimConfig(betas=(0.5, 0.5), eps=0.0))
    for step, gradient in enumerate([torch.tensor([[1.0, 4.0]]), torch.tensor([[3.0, -4.0]])]):
        layer.weight.grad, layer.bias.grad = gradient.clone(), torch.ones(1)
        set_schedule(optimizer, lr=0.1, weight_decay=0.2, last_layer_lr=0.0)
        optimizer.step()
        if step == 0:
            # Moments corrected for their start are the gradient itself: a step of lr times its sign.
            first = weight * (1 - 0.1 * 0.2) - 0.1 * gradient.sign()
            assert torch.allclose(layer.weight, first)
    # Corrected moments: mean (1/4 + 3/2) / (3/4) and (1 - 2) / (3/4), squares (1/4 + 9/2) / (3/4) and 16.
    mean = torch.tensor([[1.75, -1.0]]) / 0.75
    square = torch.tensor([[4.75, 12.0]]) / 0.75
    assert torch.allclose(layer.weight, first * (1 - 0.1 * 0.2) - 0.1 * mean / square.sqrt())
    # A bias does not decay.
    assert torch.allclose(layer.bias, torch.tensor([0.3]))


def test_fused_where_the_device_has_it_and_separate_kernels_elsewhere(monkeypatch):
    layer = nn.Linear(2, 1)
    assert adamw(param_groups(layer), OptimConfig()).defaults["fused"]
    real = torch.optim.AdamW

    def without_fused(*args, fused=None, **settings):
        if fused:
            raise RuntimeError("no fused kernel on this device")
        return real(*args, **settings)

    monkeypatch.setattr(torch.optim, "AdamW", without_fused)
    assert adamw(param_groups(layer), OptimConfig()).defaults["foreach"]


def test_separate_kernels_where_they_are_asked_for_take_the_same_steps():
    torch.manual_seed(0)
    weights = []
    for fused in (True, False):
        layer = nn.Linear(5, 3)
        nn.init.constant_(layer.weight, 0.5)
        nn.init.zeros_(layer.bias)
        optimizer = adamw(param_groups(layer), OptimConfig(fused=fused))
        assert bool(optimizer.defaults["fused"]) == fused
        set_schedule(optimizer, lr=0.1, weight_decay=0.2, last_layer_lr=0.1)
        for step in range(3):
            layer.weight.grad = torch.linspace(-1, 2, 15).view(3, 5) * (step + 1)
            layer.bias.grad = torch.ones(3) * step
            optimizer.step()
        weights.append(layer.weight.detach())
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-6)
