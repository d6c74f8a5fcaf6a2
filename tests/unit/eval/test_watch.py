# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from opendino.config import load
from opendino.errors import ConfigError, TrainingError
from opendino.eval.health import summary
from opendino.eval.watch import Watch, WatchConfig, states


def healthy():
    return summary(torch.randn(200, 32), (torch.randn(200, 64) * 2).softmax(1))


def test_healthy_figures_are_not_named():
    watch = Watch()
    for step in range(0, 1000, 50):
        assert watch.look(step, healthy()) == []


def test_each_collapse_has_its_name():
    spread, even = torch.randn(200, 32), (torch.randn(200, 64) * 2).softmax(1)
    constant = torch.ones(200, 32) + 1e-3 * torch.randn(200, 32)
    assert set(states(summary(constant, even))) == {"features"}
    line = torch.linspace(-1, 1, 200)[:, None] * torch.randn(1, 32) + 1e-4 * torch.randn(200, 32)
    assert "directions" in states(summary(line))["features"]
    favourite = (torch.randn(200, 64) + 6 * torch.eye(64)[3]).softmax(1)
    assert "prototype" in states(summary(spread, favourite))
    sure = torch.zeros(200, 64)
    sure[:, 3] = 1
    assert set(states(summary(spread, sure))) == {"prototype", "sharp"}
    undecided = (1e-3 * torch.randn(200, 64)).softmax(1)
    assert set(states(summary(spread, undecided))) == {"flat"}
    assert states({"mean_cosine": math.nan})["not finite"]


def test_a_state_has_to_last_and_is_named_once_until_it_has_passed():
    watch = Watch(WatchConfig(patience=2, start=100))
    bad = {"health/mean_cosine": 0.999}
    assert watch.look(50, bad) == []  # before the start
    assert watch.look(100, bad) == []
    (sentence,) = watch.look(150, bad)
    assert sentence.startswith("collapse at step 150: features are constant, mean cosine 0.9990; lower")
    assert watch.look(200, bad) == []
    assert watch.look(250, {"health/mean_cosine": 0.1}) == []
    assert watch.look(300, bad) == []
    assert len(watch.look(350, bad)) == 1


def test_it_stops_or_looks_away():
    stop = Watch(WatchConfig(action="stop", patience=1, start=0))
    with pytest.raises(TrainingError, match="collapse at step 0"):
        stop.look(0, {"mean_cosine": 1.0})
    assert Watch(WatchConfig(action="off", patience=1, start=0)).look(0, {"mean_cosine": 1.0}) == []
    with pytest.raises(ConfigError, match="action"):
        load(WatchConfig, overrides=["action=shout"])
    with pytest.raises(ConfigError, match=r"watch\.every = -1"):
        WatchConfig(every=-1)
    with pytest.raises(ConfigError, match=r"watch\.share = 0"):
        WatchConfig(share=0.0)
    with pytest.raises(ConfigError, match=r"watch\.mean_cosine = 2"):
        WatchConfig(mean_cosine=2.0)
    with pytest.raises(ConfigError, match=r"watch\.patience = 0"):
        WatchConfig(patience=0)


def drill(*, centre, temp, steps=200, seed=0):
    """Self-distillation in the small: two views of points, a student and its slow copy, 64 prototypes.

    What the watch says of the teacher, looked at each 20 steps.
    """
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(128, 16, generator=generator)
    student = [torch.randn(16, 32, generator=generator) / 4, torch.randn(32, 64, generator=generator) / 6]
    teacher = [w.clone() for w in student]
    for w in student:
        w.requires_grad_()
    centred, watch, said = torch.zeros(64), Watch(), []

    def features(x, weights):
        return torch.nn.functional.layer_norm((x @ weights[0]).relu(), (32,))

    for step in range(steps + 1):
        views = [points + 0.3 * torch.randn(points.shape, generator=generator) for _ in range(2)]
        with torch.no_grad():
            logits = features(views[0], teacher) @ teacher[1]
            target = ((logits - centred * centre) / temp).softmax(1)
            centred = 0.9 * centred + 0.1 * logits.mean(0)
            if step % 20 == 0:
                said += watch.look(step, summary(features(points, teacher), target))
        loss = -(target * (features(views[1], student) @ student[1] / 0.1).log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, student)
        with torch.no_grad():
            for w, g, t in zip(student, gradients, teacher, strict=True):
                w -= 0.1 * g
                t.lerp_(w, 0.1)
    return said, watch.named


def test_a_run_forced_to_collapse_is_named_within_200_steps_and_a_healthy_one_is_not():
    assert drill(centre=1.0, temp=0.07) == ([], set())
    for temp in (1.0, 5.0):  # nothing centres, nothing sharpens: every image becomes undecided
        said, named = drill(centre=0.0, temp=temp)
        assert named == {"flat"}
        assert int(said[0].split()[3].rstrip(":")) <= 200
