# SPDX-License-Identifier: Apache-2.0
"""Every schedule of the method as a pure function of the step number; read `param_groups.py` next.

Lengths are given in steps (`int`) or as a share of the run (`float` in [0, 1]); `steps_of` turns both into steps.
Steps count from 0. Nothing here has state, so a resumed run asks for step n and gets what it would have had.
"""

import math
from collections.abc import Callable

from opendino.errors import ConfigError

Schedule = Callable[[int], float]
"""The value of a quantity at a step."""


def steps_of(length: int | float, total: int, name: str) -> int:
    """Steps of a length that is given in steps or as a share of the run.

    Args:
        length: an int is a number of steps, a float a share of the run in [0, 1]; so 1 is one step, 1.0 the run.
        total: steps of the run.
        name: dotted key of the setting, for the error.

    Raises:
        ConfigError: the length is negative, longer than the run, a float above 1, or no number.
    """
    if not math.isfinite(length) or isinstance(length, bool):
        raise ConfigError(f"{name} = {length} is no length; use a share of the run from 0.0 to 1.0, or whole steps")
    if isinstance(length, float):
        if not 0 <= length <= 1:
            raise ConfigError(
                f"{name} = {length} is neither a share of the run nor a number of steps; "
                f"use a share of 0.0 to 1.0, or whole steps such as {max(round(length), 0)}"
            )
        return round(length * total)
    if length < 0:
        raise ConfigError(f"{name} = {length} is a negative number of steps; use 0 or more")
    if length > total:
        raise ConfigError(
            f"{name} = {length} steps is longer than the run of {total}; "
            f"use at most {total} steps, or a share of the run such as 0.1 ({round(0.1 * total)} steps)"
        )
    return length


def cosine(
    base: float, final: float, total: int, warmup: int = 0, start_warmup: float = 0.0, freeze: int = 0
) -> Schedule:
    """Half a cosine from `base` to `final`, after a linear warm-up; `final` from the last step on.

    Args:
        base: value where the cosine begins, at step `warmup`.
        final: value that the cosine would reach at step `total`.
        total: steps of the schedule, warm-up included.
        warmup: steps that rise in a straight line from `start_warmup` to `base`; both ends are reached.
        start_warmup: value at step 0 where there is a warm-up.
        freeze: first steps at which the value is 0; the rest of the schedule stays where it is.

    Raises:
        ConfigError: the warm-up is longer than the schedule.

    Source: official `utils/utils.py`, `CosineScheduler`, and `build_schedulers` in `train/train.py`.
    """
    if warmup > total:
        raise ConfigError(f"a warm-up of {warmup} steps is longer than its schedule of {total}; shorten it")
    rise = linear(start_warmup, base, warmup)

    def value(step: int) -> float:
        if step < freeze:
            return 0.0
        if step >= total:
            return final
        if step < warmup:
            return rise(step)
        progress = (step - warmup) / (total - warmup)
        return final + 0.5 * (base - final) * (1 + math.cos(math.pi * progress))

    return value


def hold(base: float, final: float, total: int, warmup: int = 0, cooldown: int = 0, freeze: int = 0) -> Schedule:
    """`base` throughout, between a linear warm-up from 0 and a linear cool-down to `final`; `final` from the end on.

    A run of it can be branched anywhere: the steps before the cool-down do not depend on `total`.

    Args:
        base: value between the two.
        final: value that the cool-down reaches at step `total`.
        total: steps of the schedule, both included.
        warmup: steps that rise from 0 to `base`; both ends are reached.
        cooldown: last steps, which fall.
        freeze: first steps at which the value is 0; the rest of the schedule stays where it is.

    Raises:
        ConfigError: warm-up and cool-down are longer than the schedule.

    Source: Zhai et al. 2022 ("Scaling vision transformers"), section 3.5; Haegele et al. 2024 (arXiv 2405.18392).
    """
    if warmup + cooldown > total:
        raise ConfigError(
            f"a warm-up of {warmup} steps and a cool-down of {cooldown} are longer than their schedule of {total}; "
            "shorten one of them"
        )
    rise = linear(0.0, base, warmup)

    def value(step: int) -> float:
        if step < freeze:
            return 0.0
        if step >= total:
            return final
        if step < warmup:
            return rise(step)
        return base + (final - base) * max(step - (total - cooldown), 0) / max(cooldown, 1)

    return value


def linear(start: float, end: float, steps: int) -> Schedule:
    """A straight line from `start` at step 0 to `end` at step `steps - 1`, and `end` from there on.

    A line of one step has no room for both ends: it gives `start`, then `end`, as the official code does.
    """

    def value(step: int) -> float:
        if step >= steps:
            return end
        return start + (end - start) * step / max(steps - 1, 1)

    return value
