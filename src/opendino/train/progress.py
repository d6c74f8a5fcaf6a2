# SPDX-License-Identifier: Apache-2.0
"""How far a run is: a bar on a terminal, a plain line now and then elsewhere; `loop.py` feeds it."""

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_log = logging.getLogger(__name__)


class Speed:
    """Images per second and the share of time spent waiting for data, over about the last minute.

    Args:
        window: time in which an old figure loses its weight, seconds.
    """

    def __init__(self, window: float = 60.0) -> None:
        self._window = window
        self._images = self._seconds = self._waited = self._steps = 0.0

    def add(self, images: int, seconds: float, waited: float) -> None:
        """Count one step.

        Args:
            images: in the step, over all processes.
            seconds: that it took, waiting included.
            waited: of these, for data.
        """
        keep = max(0.0, 1.0 - seconds / self._window)
        self._images = self._images * keep + images
        self._seconds = self._seconds * keep + seconds
        self._waited = self._waited * keep + waited
        self._steps = self._steps * keep + 1

    @property
    def images_per_second(self) -> float:
        """Recent speed; 0 before the first step."""
        return self._images / self._seconds if self._seconds else 0.0

    @property
    def data_wait(self) -> float:
        """Recent share of time spent waiting for data, 0 to 1."""
        return self._waited / self._seconds if self._seconds else 0.0

    @property
    def seconds_per_step(self) -> float:
        """Recent time of a step; 0 before the first."""
        return self._seconds / self._steps if self._steps else 0.0


class ProgressBar:
    """Shows steps, loss, speed, waiting and time left; use as a context.

    Args:
        total: steps of the run.
        done: steps behind it when the bar appears.
        shown: whether this process shows anything.
        every: seconds between plain lines where stderr is no terminal, or a hundredth of the time since the bar
            appeared, if that is longer: a run of days should not leave a log of days.
    """

    def __init__(self, total: int, done: int = 0, shown: bool = True, every: float = 10.0) -> None:
        self._total, self._shown, self._every = total, shown, every
        self._console = Console(stderr=True)
        self._began = time.monotonic()
        self._last = self._began - every + min(every, 2.0)  # the first line soon: the run is alive
        self._bar: Progress | None = None
        if shown and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[line]}"),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task("", total=total, completed=done, line="")

    def __enter__(self) -> "ProgressBar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float, speed: Speed) -> None:
        """Show that a step is done."""
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=step, line=self._line(step, loss, speed))
        elif self._is_time() or step == self._total:
            self._last = time.monotonic()
            _log.info("step %d/%d  %s", step, self._total, self._line(step, loss, speed))

    def _is_time(self) -> bool:
        now = time.monotonic()
        return now - self._last >= max(self._every, 0.01 * (now - self._began))

    def _line(self, step: int, loss: float, speed: Speed) -> str:
        left = duration((self._total - step) * speed.seconds_per_step)
        return (
            f"loss {loss:.4f}  {speed.images_per_second:.0f} img/s  "
            f"{100 * speed.data_wait:.0f} % waiting for data  {left} left"
        )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as people write them: `1:02:03`, `2:03`, `3 days 4:05:06`."""
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    clock = f"{hours}:{minutes:02d}:{rest:02d}" if whole >= 3600 else f"{minutes}:{rest:02d}"
    return f"{days} day{'s' * (days > 1)} {clock}" if days else clock
