# SPDX-License-Identifier: Apache-2.0
"""The training loop in plain sight: one step after the other, in the published order; read `pretrain.py` next.

The loop knows nothing of images or losses. It is given a method (images in, loss out), a loader and schedules, and it
alone calls `.backward()`.
"""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from opendino.data.collate import PretrainBatch
from opendino.distributed import gather_rows, largest, rank, together, world_size
from opendino.errors import TrainingError
from opendino.methods.method import Method, StepOutput
from opendino.optim.clipping import clip_gradients
from opendino.optim.param_groups import set_schedule
from opendino.optim.schedules import Schedule
from opendino.parallel.layout import Layout
from opendino.train.figures import Figures, can_skip, step_if
from opendino.train.progress import ProgressBar, Speed
from opendino.train.state import seed_step

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""What asks a run to stop: a terminal, a launcher, SLURM ahead of the end of its time (USR1), submitit (USR2)."""
_SAME = 2.0  # seconds in which a second signal is the first one again
_log = logging.getLogger(__name__)


class Schedules(NamedTuple):
    """Everything that changes with the step."""

    lr: Schedule
    weight_decay: Schedule
    last_layer_lr: Schedule
    momentum: Schedule
    teacher_temp: Schedule

    def at(self, step: int) -> dict[str, float]:
        """All values at a step, by name."""
        return {name: schedule(step) for name, schedule in self._asdict().items()}


@runtime_checkable
class Feed(Protocol):
    """Where batches come from; see `data/loaders.py`."""

    @property
    def waited(self) -> float:
        """Seconds that it has kept the loop waiting so far."""
        ...

    def __next__(self) -> PretrainBatch:
        """Batch of the next step, on the device."""
        ...


@dataclass
class Run:
    """The parts of a run that a step touches.

    Attributes:
        method: student, teacher and losses; called with a batch and the teacher's temperature.
        optimizer: on the student's parameters.
        schedules: values of each step.
        total: steps of the whole run.
        seed: of the run.
        precision: "fp32" or "bf16"; bf16 runs matrix products in bfloat16, parameters stay float32.
        device: of the method.
        clip_grad: largest gradient norm of each sub-network; 0 for no clipping.
        step: steps done.
        accumulate: passes that a step's batch is learned in.
        most_not_finite: steps that may be left out because their loss or a gradient is not finite.
        not_finite: steps that have been so far.
        layout: how the networks lie on the processes.
        ahead: whether the next step is handed to the device before the figures of this one are read (`step_ahead`).
    """

    method: Method
    optimizer: Optimizer
    schedules: Schedules
    total: int
    seed: int
    precision: str
    device: torch.device
    clip_grad: float
    step: int = 0
    accumulate: int = 1
    most_not_finite: int = 0
    not_finite: int = 0
    layout: Layout = field(default_factory=Layout)
    ahead: bool = False


class NotFinite(TrainingError):  # noqa: N818 (says what was found)
    """The loss or a gradient of a step is not finite; neither a parameter nor a centre was changed by it.

    Attributes:
        step: number of the step, counted from 0.
        record: the step's figures.
        ids: indices of the batch's images in the data set, those of all processes.
    """

    def __init__(self, step: int, record: dict[str, float], ids: list[int]) -> None:
        bad = ", ".join(f"{name} {value}" for name, value in record.items() if not math.isfinite(value))
        shown = ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        super().__init__(
            f"step {step}: not finite: {bad}; images {shown}; nothing was changed by this step and the last checkpoint "
            "is good; look at these images, or begin anew with a lower optim.base_lr in another output_dir"
        )
        self.step, self.record, self.ids = step, record, ids


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The process was asked to stop and has done so between two steps.

    Attributes:
        signal: number of the signal that asked.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal = signal_number


def train_step(run: Run, batch: PretrainBatch) -> dict[str, float]:
    """One optimisation step, in the published order.

    Args:
        run: its networks, optimizer and step number are moved on.
        batch: on the run's device.

    Returns:
        What was done: "loss", the very number that was back-propagated, its terms as "loss/NAME", the gradient norm
        of each sub-network before clipping as "grad_norm/NAME", and the values of the schedules.

    Raises:
        NotFinite: the loss or a gradient; nothing has been changed then.

    Source: official `train/train.py`, `do_train`.
    """
    now, figures, remembered = _gradients(run, batch)
    # Waits for the device: nothing that is not finite may get into the weights.
    record = figures.read()
    if not all(map(math.isfinite, record.values())):
        for name, buffer in _targets_memory(run.method):
            buffer.copy_(remembered[name])
        raise NotFinite(run.step, record, gather_rows(batch.ids).tolist())
    run.optimizer.step()
    run.method.update_teacher(now["momentum"])
    run.step += 1
    return record | now


class Ahead(NamedTuple):
    """A step that the device has been given, and may not have done yet.

    Attributes:
        step: its number, counted from 0.
        figures: what it will say.
        now: values of the schedules.
        ids: of its images.
    """

    step: int
    figures: Figures
    now: dict[str, float]
    ids: Tensor

    def record(self) -> dict[str, float]:
        """As `train_step` returns it; waits for the step.

        Raises:
            NotFinite: the loss or a gradient; the device has changed nothing then.
        """
        record = self.figures.read()
        if not all(map(math.isfinite, record.values())):
            raise NotFinite(self.step, record, gather_rows(self.ids).tolist())
        return record | self.now


def step_ahead(run: Run, batch: PretrainBatch) -> Ahead:
    """`train_step` without waiting: where something is not finite the device itself changes nothing.

    Args:
        run: its networks, optimizer and step number are moved on.
        batch: on the run's device.
    """
    now, figures, remembered = _gradients(run, batch)
    counts = figures.counts()
    step_if(run.optimizer, counts)
    run.method.update_teacher(now["momentum"], counts)
    for name, buffer in _targets_memory(run.method):
        buffer.copy_(torch.where(counts > 0, buffer, remembered[name]))
    figures.send()
    run.step += 1
    return Ahead(run.step - 1, figures, now, batch.ids)


def can_go_ahead(run: Run) -> bool:
    """Whether `step_ahead` saves anything and works: on a GPU, with all parameters on it and a fused optimizer."""
    return run.device.type == "cuda" and can_skip(run.optimizer)


def _gradients(run: Run, batch: PretrainBatch) -> tuple[dict[str, float], Figures, dict[str, Tensor]]:
    """The step up to its clipped gradients: values of its schedules, its figures, and centres before it."""
    seed_step(run.seed, run.step, rank())
    run.method.begin_step(run.step)
    now = run.schedules.at(run.step)
    set_schedule(run.optimizer, now["lr"], now["weight_decay"], now["last_layer_lr"])
    run.optimizer.zero_grad(set_to_none=True)
    run.layout.begin_step()
    remembered = {name: buffer.clone() for name, buffer in _targets_memory(run.method)}
    loss, terms = _backward(run, batch, now["teacher_temp"])
    run.layout.reduce(run.method.student)
    return now, Figures(loss, terms, clip_gradients(run.method.subnetworks(), run.clip_grad)), remembered


def _backward(run: Run, batch: PretrainBatch, teacher_temp: float) -> StepOutput:
    """Gradients of a batch, in as many passes as the run takes; the loss and its terms are those of the batch."""
    passes = run.method.passes(batch, teacher_temp, run.accumulate)
    whole: StepOutput | None = None
    while True:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            output = next(passes, None)
        if output is None:
            break
        output.loss.backward()
        loss, terms = output.loss.detach(), output.terms
        if whole is not None:
            loss, terms = whole.loss + loss, {name: whole.terms[name] + term for name, term in terms.items()}
        whole = StepOutput(loss, terms)
    if whole is None:
        raise TrainingError(f"step {run.step}: the method has no pass to learn from; mend its `passes`")
    return whole


def _targets_memory(method: Method) -> Iterator[tuple[str, Tensor]]:
    """What a method remembers of batches besides its networks, such as centres: it moves as targets are made."""
    for name, buffer in method.named_buffers():
        if not name.startswith(("student.", "teacher.")):
            yield name, buffer


def train(
    run: Run,
    feed: Feed,
    bar: ProgressBar,
    after: Callable[[Run, Mapping[str, float]], None],
    save: Callable[[Run], None],
    left_out: Callable[[NotFinite], None] | None = None,
    due: Callable[[int], bool] | None = None,
    overdue: Callable[[], bool] = lambda: False,
) -> None:
    """Run all steps that are left; with several processes, each of them calls this.

    Args:
        run: begins at its own step number.
        feed: gives the batch of that step first.
        bar: is told of each step.
        after: called after each step that is due, with its record; writes, measures and saves as it sees fit.
        save: called when the process is asked to stop, and when it is overdue.
        left_out: called for each step that changed nothing, because it was not finite.
        due: says of a number of steps done whether `after` is to be called; None for always. Where the run goes ahead,
            figures of other steps are read after the next one has begun.
        overdue: asked after each step whether so much time has passed that the run is to be saved; where one process
            says so, all save.

    Raises:
        NotFinite: the loss or a gradient of a step, once more than the run allows.
        Stopped: SIGINT, SIGTERM or SIGUSR1 came to one of the processes; the step under way was finished and saved.
        Elsewhere: another process failed.
    """
    speed, waiting, loss = Speed(), None, math.nan
    with _signals() as asked:
        while run.step < run.total:
            started, waited = time.perf_counter(), feed.waited
            with together():
                batch = next(feed)
            waited, before = feed.waited - waited, waiting
            record, waiting = (None, step_ahead(run, batch)) if run.ahead else (_step(run, batch, left_out), None)
            if before is not None:
                loss = _settled(run, before, left_out)["loss"]
            is_due = due is None or due(run.step) or run.step == run.total
            if waiting is not None and (is_due or math.isnan(loss)):
                record, waiting = _settled(run, waiting, left_out), None
            loss = loss if record is None else record["loss"]
            speed.add(batch.images * world_size(), time.perf_counter() - started, waited)
            bar.update(run.step, loss, speed)
            if is_due and record is not None:
                after(run, record | {"img_per_s": speed.images_per_second, "data_wait": speed.data_wait})
            number, late = largest(asked[0] if asked else 0, int(overdue()))
            if (number or late) and run.step < run.total:
                if waiting is not None:
                    loss, waiting = _settled(run, waiting, left_out)["loss"], None
                save(run)
                if number:
                    raise Stopped(number)


def _step(run: Run, batch: PretrainBatch, left_out: Callable[[NotFinite], None] | None) -> dict[str, float]:
    """A step and its record, also where it changed nothing and the run may go on."""
    try:
        return train_step(run, batch)
    except NotFinite as error:
        record = _leave_out(run, error, left_out)
        run.optimizer.zero_grad(set_to_none=True)
        run.step += 1
        return record


def _settled(run: Run, step: Ahead, left_out: Callable[[NotFinite], None] | None) -> dict[str, float]:
    """The record of a step that has been handed over, as `_step` has it."""
    try:
        return step.record()
    except NotFinite as error:
        return _leave_out(run, error, left_out)


def _leave_out(run: Run, error: NotFinite, left_out: Callable[[NotFinite], None] | None) -> dict[str, float]:
    """Count a step that changed nothing, if the run allows it; its record."""
    run.not_finite += 1
    if run.not_finite > run.most_not_finite:
        raise error
    if left_out is not None:
        left_out(error)
    return error.record | run.schedules.at(error.step)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects requests to stop, so that they take effect between two steps; a later one stops at once.

    One that comes right behind the first is the same: a terminal sends Ctrl-C to a launcher, which passes it on, and
    to us.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may set handlers
        return

    first = [0.0]

    def ask(number: int, _frame: FrameType | None) -> None:
        if not asked:
            asked.append(number)
            first[0] = time.monotonic()
            _log.info("%s: stopping after this step; once more stops at once", signal.Signals(number).name)
        elif time.monotonic() - first[0] > _SAME:
            for each in _SIGNALS:
                signal.signal(each, before[each])
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
