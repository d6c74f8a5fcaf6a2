# SPDX-License-Identifier: Apache-2.0
"""The training loop in plain sight: one step after the other, in the published order; read `pretrain.py` next.

The loop knows nothing of images or losses. It is given a method (images in, loss out), a loader and schedules, and it
alone calls `.backward()`.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer

from opendino.data.collate import PretrainBatch
from opendino.distributed import rank, world_size
from opendino.errors import TrainingError
from opendino.methods.method import Method
from opendino.optim.clipping import clip_gradients
from opendino.optim.param_groups import set_schedule
from opendino.optim.schedules import Schedule
from opendino.train.progress import ProgressBar, Speed
from opendino.train.state import seed_step

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
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


class NotFinite(TrainingError):  # noqa: N818 (says what was found)
    """The loss or a gradient of a step is not finite; no parameter was changed by it.

    Attributes:
        step: number of the step, counted from 0.
        record: the step's figures.
        ids: indices of the batch's images in the data set.
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
        NotFinite: the loss or a gradient; no parameter has been changed then.

    Source: official `train/train.py`, `do_train`.
    """
    seed_step(run.seed, run.step, rank())
    run.method.begin_step(run.step)
    now = run.schedules.at(run.step)
    set_schedule(run.optimizer, now["lr"], now["weight_decay"], now["last_layer_lr"])
    run.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
        output = run.method(batch, now["teacher_temp"])
    output.loss.backward()
    norms = clip_gradients(run.method.subnetworks(), run.clip_grad)
    # Waits for the device: nothing that is not finite may get into the weights.
    record = _read(output.loss, output.terms, norms)
    if not all(map(math.isfinite, record.values())):
        raise NotFinite(run.step, record, batch.ids.tolist())
    run.optimizer.step()
    run.method.update_teacher(now["momentum"])
    run.step += 1
    return record | now


def train(
    run: Run,
    feed: Feed,
    bar: ProgressBar,
    after: Callable[[Run, Mapping[str, float]], None],
    save: Callable[[Run], None],
) -> None:
    """Run all steps that are left.

    Args:
        run: begins at its own step number.
        feed: gives the batch of that step first.
        bar: is told of each step.
        after: called after each step with its record; writes, measures and saves as often as it sees fit.
        save: called when the process is asked to stop.

    Raises:
        NotFinite: the loss or a gradient of a step.
        Stopped: SIGINT or SIGTERM came; the step under way was finished and saved.
    """
    speed = Speed()
    with _signals() as asked:
        while run.step < run.total:
            started, waited = time.perf_counter(), feed.waited
            batch = next(feed)
            waited = feed.waited - waited
            record = train_step(run, batch)
            speed.add(batch.images * world_size(), time.perf_counter() - started, waited)
            bar.update(run.step, record["loss"], speed)
            after(run, record | {"img_per_s": speed.images_per_second, "data_wait": speed.data_wait})
            if asked and run.step < run.total:
                save(run)
                raise Stopped(asked[0])


def _read(loss: Tensor, terms: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> dict[str, float]:
    """Numbers of a step in one transfer from the device."""
    named = {"loss": loss}
    named |= {f"loss/{name}": term for name, term in terms.items()}
    named |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    # A network without any gradient has its norm, 0, on the CPU.
    values = torch.stack([value.detach().float().reshape(()).to(loss.device) for value in named.values()]).tolist()
    return dict(zip(named, values, strict=True))


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects requests to stop, so that they take effect between two steps; a second one stops at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may set handlers
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for each in _SIGNALS:
            signal.signal(each, before[each])
        _log.info("%s: stopping after this step; once more stops at once", signal.Signals(number).name)

    before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
