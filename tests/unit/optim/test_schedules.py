# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from opendino.errors import ConfigError
from opendino.optim.schedules import cosine, hold, linear, steps_of

SHORT = 125_000
LONG = 625_000
SHORT_PEAK = 4e-3 * math.sqrt(2)
LONG_PEAK = 2e-4 * math.sqrt(3)

# Measured on the published code: (step, lr, weight decay, momentum, teacher temperature).
PUBLISHED_SHORT = [
    (0, 0.0, 0.04, 0.992, 0.04),
    (1250, 5.6573068e-4, 0.040088819, 0.99200197, 0.041000027),
    (12499, 5.6568542e-3, 0.048808429, 0.99219574, 0.049999467),
    (12500, 5.6568542e-3, 0.048809827, 0.99219577, 0.050000267),
    (37500, 4.995245e-3, 0.11419865, 0.99364886, 0.07),
    (62500, 3.3199915e-3, 0.22, 0.996, 0.07),
    (124999, 1.0000011e-6, 0.4, 1.0, 0.07),
]
# (step, lr, weight decay, momentum)
PUBLISHED_LONG = [(50_000, 1.7320681e-4, 0.042513347, 0.99409425), (312_500, 2.246108e-4, 0.12, 0.997)]


def printed(value):
    """Eight significant digits, as the published values are printed."""
    return pytest.approx(value, rel=5e-8)


@pytest.mark.parametrize(("step", "lr", "decay", "momentum", "temp"), PUBLISHED_SHORT)
def test_published_values_of_the_short_recipe(step, lr, decay, momentum, temp):
    assert cosine(SHORT_PEAK, 1e-6, SHORT, warmup=12_500)(step) == printed(lr)
    assert cosine(0.04, 0.4, SHORT)(step) == printed(decay)
    assert cosine(0.992, 1.0, SHORT)(step) == printed(momentum)
    assert linear(0.04, 0.07, 37_500)(step) == printed(temp)


@pytest.mark.parametrize(("step", "lr", "decay", "momentum"), PUBLISHED_LONG)
def test_published_values_of_the_long_recipes(step, lr, decay, momentum):
    assert cosine(LONG_PEAK, 1e-6, LONG, warmup=100_000)(step) == printed(lr)
    assert cosine(0.04, 0.2, LONG)(step) == printed(decay)
    assert cosine(0.994, 1.0, LONG)(step) == printed(momentum)


@pytest.mark.parametrize(("warmup", "start", "total"), [(0, 0.0, 10), (1, 0.5, 10), (4, 0.5, 10), (10, 0.0, 10)])
def test_equals_the_schedule_laid_out_as_an_array(warmup, start, total):
    rise = np.linspace(start, 2.0, warmup)
    fall = 0.1 + 0.5 * (2.0 - 0.1) * (1 + np.cos(np.pi * np.arange(total - warmup) / max(total - warmup, 1)))
    schedule = cosine(2.0, 0.1, total, warmup=warmup, start_warmup=start)
    assert [schedule(step) for step in range(total)] == pytest.approx([*rise, *fall])
    assert schedule(total) == schedule(total + 1000) == 0.1


def test_frozen_steps_are_zero_and_the_others_stay():
    free, frozen = cosine(1.0, 0.0, 100, warmup=20), cosine(1.0, 0.0, 100, warmup=20, freeze=7)
    assert [frozen(step) for step in range(7)] == [0.0] * 7
    assert [frozen(step) for step in range(7, 100)] == [free(step) for step in range(7, 100)]


def test_linear_reaches_both_ends():
    assert [linear(1.0, 3.0, 5)(step) for step in range(7)] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.0]
    assert [linear(1.0, 3.0, 1)(step) for step in range(2)] == [1.0, 3.0]
    assert linear(1.0, 3.0, 0)(0) == 3.0


@pytest.mark.parametrize(
    ("length", "total", "steps"),
    [(0.1, SHORT, 12_500), (0.3, SHORT, 37_500), (0.01, SHORT, 1250), (0.16, LONG, 100_000), (0.06, LONG, 37_500)],
)
def test_published_lengths_as_shares_of_the_run(length, total, steps):
    assert steps_of(length, total, "x") == steps


def test_one_is_a_step_and_one_point_zero_is_the_run():
    assert steps_of(1, 500, "x") == 1
    assert steps_of(1.0, 500, "x") == 500
    assert steps_of(0, 500, "x") == steps_of(0.0, 500, "x") == 0


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (100_000, r"optim.warmup = 100000 steps is longer than the run of 2000; use at most 2000 steps, .* 0.1 \(200"),
        (-1, "optim.warmup = -1 is a negative"),
        (1.5, "optim.warmup = 1.5 is neither .* whole steps such as 2"),
        (-0.5, "optim.warmup = -0.5 is neither"),
    ],
)
def test_lengths_that_make_no_sense_are_refused_with_a_way_out(length, message):
    with pytest.raises(ConfigError, match=message):
        steps_of(length, 2000, "optim.warmup")


def test_a_warmup_longer_than_its_schedule_is_refused():
    with pytest.raises(ConfigError, match="warm-up of 11 steps is longer than its schedule of 10"):
        cosine(1.0, 0.0, 10, warmup=11)


@pytest.mark.parametrize("length", [math.nan, math.inf, -math.inf, True, False])
def test_what_is_no_length(length):
    with pytest.raises(ConfigError, match=rf"^optim\.warmup = {length} is no length"):
        steps_of(length, 100, "optim.warmup")


def test_a_held_rate_by_hand():
    rate = hold(1.0, 0.2, total=20, warmup=3, cooldown=4, freeze=1)
    assert [rate(step) for step in (0, 1, 2, 3, 10, 16)] == [0, 0.5, 1, 1, 1, 1]
    assert [rate(step) for step in (17, 18, 19, 20, 99)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2])
    longer = hold(1.0, 0.2, total=50, warmup=3, cooldown=4, freeze=1)
    assert [longer(step) for step in range(17)] == [rate(step) for step in range(17)], "it can be branched"
    assert hold(2.0, 0.0, total=3)(2) == 2
    with pytest.raises(
        ConfigError, match="a warm-up of 3 steps and a cool-down of 4 are longer than their schedule of 6"
    ):
        hold(1.0, 0.0, total=6, warmup=3, cooldown=4)
