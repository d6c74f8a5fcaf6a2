# SPDX-License-Identifier: Apache-2.0
import math
import os
import signal

import pytest
import torch

from opendino.config import load
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.figures import can_skip
from opendino.train.loop import NotFinite, Schedules, Stopped, can_go_ahead, train, train_step
from opendino.train.pretrain import build_feed, build_run, open_images
from opendino.train.progress import ProgressBar
from opendino.train.state import seed_step

# Without a running centre a batch can be passed through twice.
WORDS = ["optim.warmup=0", "optim.freeze_last_layer=1", "dino.centering=sinkhorn_knopp"]


@pytest.fixture
def parts(tiny_words):
    config = load(PretrainConfig, None, [*tiny_words, *WORDS])
    dataset = open_images(config)
    config = fill_in(config, len(dataset))
    run = build_run(config)
    return config, run, build_feed(config, dataset, run.device, 0)


def copies(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def clip_by_hand(gradients, most):
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))
    return norm, {name: gradient * min(1.0, most / (norm + 1e-6)) for name, gradient in gradients.items()}


def test_one_step_by_hand(parts):
    """Schedule, backward, clipping of each network apart, AdamW's first step, then the teacher from the new student."""
    config, run, feed = parts
    batch = next(feed)
    student, teacher = copies(run.method.student), copies(run.method.teacher)

    # The same forward pass, apart from the loop: its gradients are what the step has to work with.
    seed_step(config.seed, 0)
    loss = run.method(batch, 0.04).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in run.method.student.named_parameters() if p.grad is not None}
    run.clip_grad = 0.01  # so small that both networks are clipped
    record = train_step(run, batch)

    assert record["loss"] == loss.item()
    assert sum(record[f"loss/{name}"] for name in ("dino_local", "dino_global", "ibot", "koleo")) == pytest.approx(
        record["loss"], rel=1e-6
    )
    peak = config.optim.base_lr * math.sqrt(8 / 1024)
    assert (record["lr"], record["last_layer_lr"]) == (pytest.approx(peak), 0.0)
    assert (record["momentum"], record["teacher_temp"]) == (pytest.approx(0.992), pytest.approx(0.04))
    for network in ("backbone", "dino_head"):
        own = {name: gradient for name, gradient in gradients.items() if name.startswith(network)}
        norm, clipped = clip_by_hand(own, 0.01)
        assert record[f"grad_norm/{network}"] == pytest.approx(norm, rel=1e-5)
        for name, gradient in clipped.items():
            before, after = student[name], dict(run.method.student.named_parameters())[name].detach()
            assert torch.allclose(after, adamw_first_step(name, before, gradient, peak), atol=1e-7), name
    moved = copies(run.method.student)
    for name, parameter in run.method.teacher.named_parameters():
        assert torch.allclose(parameter, 0.992 * teacher[name] + 0.008 * moved[name], atol=1e-7)
    assert run.step == 1


def adamw_first_step(name, before, gradient, peak):
    """Loshchilov and Hutter 2019: after one step both corrected moments are the gradient and its square."""
    decayed = not name.endswith("bias") and "norm" not in name and "gamma" not in name
    depth, lr = 2, peak
    if "last_layer" in name:
        lr = 0.0
    elif "blocks." in name:
        lr *= 0.9 ** (depth - int(name.split("blocks.")[1].split(".")[0]))
    elif any(part in name for part in ("pos_embed", "cls_token", "mask_token", "patch_embed")):
        lr *= 0.9 ** (depth + 1) * (0.2 if "patch_embed" in name else 1.0)
    shrunk = before * (1 - lr * (0.04 if decayed else 0.0))
    return shrunk - lr * gradient / (gradient.abs() + 1e-8)


def test_gradients_within_the_limit_are_left_alone(parts):
    _, run, feed = parts
    run.clip_grad = 1e9
    record = train_step(run, next(feed))
    found = math.sqrt(
        sum(
            float(p.grad.double().square().sum())
            for p in run.method.student["backbone"].parameters()
            if p.grad is not None
        )
    )
    assert record["grad_norm/backbone"] == pytest.approx(found, rel=1e-5)


def test_a_loss_that_is_not_finite_changes_nothing(parts):
    _, run, feed = parts
    batch = next(feed)
    train_step(run, batch)
    batch.global_crops[:, 0, 0, 0] = float("nan")
    student, teacher = copies(run.method.student), copies(run.method.teacher)
    with pytest.raises(NotFinite, match=r"^step 1: not finite: loss nan") as caught:
        train_step(run, batch)
    assert caught.value.ids == batch.ids.tolist()
    assert str(batch.ids[0].item()) in str(caught.value)
    assert "loss/ibot" in str(caught.value)
    assert "begin anew with a lower optim.base_lr in another output_dir" in str(caught.value)
    assert run.step == 1
    for before, network in ((student, run.method.student), (teacher, run.method.teacher)):
        assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())


def test_randomness_belongs_to_the_step(parts):
    """Stochastic depth of a step does not depend on what was drawn before it."""
    config, run, feed = parts
    batch = next(feed)
    seed_step(config.seed, 3)
    first = run.method(batch, 0.04).loss
    torch.randn(17)
    seed_step(config.seed, 3)
    again = run.method(batch, 0.04).loss
    seed_step(config.seed, 4)
    other = run.method(batch, 0.04).loss
    assert first == again
    assert first != other


def test_schedules_are_read_by_name():
    schedules = Schedules(*(lambda step, number=number: step * 10.0 + number for number in range(5)))
    assert schedules.at(2) == {
        "lr": 20.0,
        "weight_decay": 21.0,
        "last_layer_lr": 22.0,
        "momentum": 23.0,
        "teacher_temp": 24.0,
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_between_two_steps(parts, number):
    _, run, feed = parts
    saved, handlers = [], [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def after(run, record):
        if run.step == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped) as caught, ProgressBar(run.total, shown=False) as bar:
        train(run, feed, bar, after, lambda run: saved.append(run.step))
    assert caught.value.signal == number
    assert (run.step, saved) == (2, [2])
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_all_steps_are_done_and_recorded(parts):
    _, run, feed = parts
    records = []
    with ProgressBar(run.total, shown=False) as bar:
        train(run, feed, bar, lambda run, record: records.append((run.step, record)), lambda run: None)
    assert [step for step, _ in records] == [1, 2, 3, 4, 5, 6]
    assert all(record["img_per_s"] > 0 and 0 <= record["data_wait"] <= 1 for _, record in records)
    assert records[-1][1]["momentum"] > records[0][1]["momentum"]


def test_a_run_that_is_overdue_is_saved_and_goes_on(parts):
    _, run, feed = parts
    saved, steps = [], []
    with ProgressBar(run.total, shown=False) as bar:
        train(
            *(run, feed, bar, lambda run, record: steps.append(run.step), lambda run: saved.append(run.step)),
            overdue=lambda: run.step in (2, 5, 6),
        )
    assert (steps, saved) == ([1, 2, 3, 4, 5, 6], [2, 5])


def test_a_method_is_told_of_each_step(parts, monkeypatch):
    _, run, feed = parts
    told = []
    monkeypatch.setattr(run.method, "begin_step", told.append)
    run.step = 3
    for _ in range(2):
        train_step(run, next(feed))
    assert told == [3, 4]


def test_steps_that_are_not_finite_are_left_out_as_often_as_allowed(parts):
    """Two of six batches are spoilt; networks and centres after them are those before them."""
    _, run, feed = parts
    run.most_not_finite = 2
    run.method.register_buffer("memory", torch.zeros(1))  # as a centre: it moves as targets are made
    ask, seen, left_out = run.method.forward, [], []

    def forward(batch, temp):
        run.method.memory.add_(1)
        return ask(batch, temp)

    def spoil(batch):
        if run.step in (1, 3):
            batch.global_crops[:, 0, 0, 0] = float("nan")
        seen.append((run.step, copies(run.method)))
        return batch

    run.method.forward = forward
    spoilt = Spoilt(feed, spoil)
    records = []
    with ProgressBar(run.total, shown=False) as bar:
        train(run, spoilt, bar, lambda run, r: records.append(r), lambda run: None, left_out.append)
    assert (run.step, run.not_finite, [error.step for error in left_out]) == (6, 2, [1, 3])
    assert run.method.memory.item() == 4.0
    assert [math.isfinite(record["loss"]) for record in records] == [True, False, True, False, True, True]
    assert records[1]["teacher_temp"] > 0
    states = dict(seen)
    for before, after in ((1, 2), (3, 4)):
        assert all(tensor.equal(states[after][name]) for name, tensor in states[before].items())
    assert not all(tensor.equal(states[3][name]) for name, tensor in states[2].items())

    run.step, run.total = 0, 9
    with pytest.raises(NotFinite, match=r"^step 1"), ProgressBar(run.total, shown=False) as bar:
        train(run, spoilt, bar, lambda run, r: None, lambda run: None, left_out.append)


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
def test_going_ahead_is_the_same_run(tiny_words, centering):
    """Figures read one step late, and spoilt steps left out by the device: the networks, centres and moments are those
    of a run that waits for each step. One is saved under way because time has passed, the other is not."""
    found = []
    for ahead in (False, True):
        config = load(PretrainConfig, None, [*tiny_words, "optim.warmup=0", f"dino.centering={centering}"])
        dataset = open_images(config)
        config = fill_in(config, len(dataset))
        run = build_run(config)
        run.most_not_finite, run.ahead = 2, ahead
        assert can_skip(run.optimizer)
        assert not can_go_ahead(run), "nothing is waited for on a CPU"
        records, left_out, saved = {}, [], []

        def spoil(batch, run=run):
            if run.step in (1, 4):
                batch.global_crops[:, 0, 0, 0] = float("nan")
            return batch

        def after(run, record, records=records):
            records[run.step] = record

        def overdue(run=run, ahead=ahead):
            return ahead and run.step in (2, 3, 6)

        def save(run, saved=saved):
            saved.append((run.step, run.not_finite))

        with ProgressBar(run.total, shown=False) as bar:
            feed = Spoilt(build_feed(config, dataset, run.device, 0), spoil)
            train(run, feed, bar, after, save, left_out.append, lambda step: step in (3, 5), overdue)
        assert list(records) == [3, 5, 6]
        assert saved == ([(2, 1), (3, 1)] if ahead else []), "settled before it is saved; the end is not for the loop"
        assert [error.step for error in left_out] == [1, 4]
        assert left_out[0].ids
        assert (run.step, run.not_finite) == (6, 2)
        assert not math.isfinite(records[5]["loss"])
        moments = [value for state in run.optimizer.state.values() for value in state.values()]
        found.append((records, run.method.state_dict(), moments))
    (records, state, moments), (wanted, wanted_state, wanted_moments) = found[1], found[0]
    for step in (3, 6):
        times = {"img_per_s", "data_wait"}
        assert {k: v for k, v in records[step].items() if k not in times} == pytest.approx(
            {k: v for k, v in wanted[step].items() if k not in times}, rel=1e-5
        )
    for name, value in wanted_state.items():
        torch.testing.assert_close(state[name], value, atol=1e-6, rtol=1e-5, msg=name)
    torch.testing.assert_close(moments, wanted_moments, atol=1e-6, rtol=1e-4)


def test_going_ahead_stops_at_too_many_that_are_not_finite_and_at_a_signal(parts):
    _, run, feed = parts
    run.ahead, run.most_not_finite = True, 0

    def spoil(batch):
        if run.step == 1:
            batch.global_crops[:, 0, 0, 0] = float("nan")
        return batch

    with pytest.raises(NotFinite, match=r"^step 1") as caught, ProgressBar(run.total, shown=False) as bar:
        train(run, Spoilt(feed, spoil), bar, lambda run, r: None, lambda run: None, None, lambda step: False)
    assert math.isnan(caught.value.record["loss"])

    saved = []

    def stop(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return batch

    with pytest.raises(Stopped), ProgressBar(run.total, shown=False) as bar:
        train(run, Spoilt(feed, stop), bar, lambda run, r: None, lambda run: saved.append(run.step))
    assert saved == [run.step]


class Spoilt:
    waited = 0.0

    def __init__(self, feed, change):
        self.feed, self.change = feed, change

    def __next__(self):
        return self.change(next(self.feed))


@pytest.mark.parametrize(
    ("words", "steps", "passes"),
    [
        (["dino.centering=sinkhorn_knopp"], 20, (1, 2, 4)),
        (
            ["dino.centering=centering", "ibot.separate_head=true", "ibot.prototypes=32", "ibot.hidden_dim=32"],
            5,
            (1, 4),
        ),
        (["dino.objective=coding_rate"], 5, (1, 4)),
    ],
    ids=["sinkhorn", "centres", "coding rate"],
)
def test_passes_of_a_batch_are_the_batch(tiny_words, words, steps, passes):
    """Two and four passes against one: what evens out, counts or compares images does so over the whole batch."""
    found = []
    for parts in passes:
        words = ["student.drop_path_rate=0", "koleo.loss_weight=1", "train.iterations=20", "optim.warmup=0", *words]
        config = load(PretrainConfig, None, [*tiny_words, *words])
        dataset = open_images(config)
        config = fill_in(config, len(dataset))
        run = build_run(config)
        run.accumulate = parts
        feed = build_feed(config, dataset, run.device, 0)
        found.append([train_step(run, next(feed)) for _ in range(steps)])
    for other in found[1:]:
        for record, wanted in zip(other, found[0], strict=True):
            # A cosine near 1 leaves its last digits alone in the loss.
            assert record == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_passes_draw_the_same_stochastic_depth_twice(parts):
    """The pass for KoLeo keeps nothing, and the passes that learn leave out what it left out."""
    _, run, feed = parts
    batch, seen = next(feed), []
    views = run.method.student_views

    def watched(piece):
        found = views(piece)
        seen.append(found.cls.detach())
        return found

    run.method.student_views, run.accumulate = watched, 2
    train_step(run, batch)
    first, second, again, last = seen
    assert first.equal(again)
    assert second.equal(last)
