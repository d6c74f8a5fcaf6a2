# SPDX-License-Identifier: Apache-2.0
"""Figures of a run: `metrics.jsonl`, one JSON object a line, and TensorBoard; a resume leaves no gap and no double."""

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opendino.errors import ConfigError
from opendino.files import to_disk, writing
from opendino.logs import JsonLines

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class LogConfig:
    """What is written down while training; none of it changes a number.

    Attributes:
        every: steps between two records in `metrics.jsonl`; every loss is checked at every step all the same.
        tensorboard: write event files too.
        picture: draw the first batch's crops and masks into `first_batch.png`.
    """

    every: int = 10
    tensorboard: bool = True
    picture: bool = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"log.every = {self.every} is no number of steps; use 1 or more")


class MetricLog:
    """Writes records of one run, each with the number of steps done.

    Args:
        folder: of the run.
        done: steps behind the run; records beyond it, of a process that was killed, are dropped.
        config: what is written.
        writes: whether this process is the one that writes; for another all calls do nothing.
    """

    def __init__(self, folder: Path, done: int, config: LogConfig, writes: bool = True) -> None:
        self.config, self._writes = config, writes
        self._lines = JsonLines(folder / "metrics.jsonl")
        self._board = None
        if not writes:
            return
        if self._lines.path.exists():
            self._lines.truncate("step", done or -1)  # at step 0 also what was measured before it
        if config.tensorboard:
            with writing(folder / "tensorboard"):
                self._board = _event_files(folder / "tensorboard", done)
            self._hook, threading.excepthook = threading.excepthook, _quietly(threading.excepthook)

    def write(self, step: int, record: Mapping[str, float]) -> None:
        """Append one record; figures that are not finite become null, which is JSON.

        Raises:
            CheckpointError: the record could not be written, for example for want of space.
        """
        if not self._writes:
            return
        clean = {key: value if math.isfinite(value) else None for key, value in record.items()}
        with writing(self._lines.path):
            self._lines.write({"step": step, **clean})
            if self._board is not None:
                for key, value in record.items():
                    self._board.add_scalar(key, value, step)

    def to_disk(self) -> None:
        """Bring all records to the disk; called before a checkpoint that relies on them."""
        if self._writes and self._lines.path.exists():
            to_disk(self._lines.path)
        if self._board is not None:
            with writing(self._lines.path.parent / "tensorboard"):
                self._board.flush()

    def close(self) -> None:
        """Finish the event files."""
        if self._board is not None:
            # A full disk has been reported by then, and this must not hide what is being reported.
            with contextlib.suppress(OSError):
                self._board.close()
            threading.excepthook = self._hook


def _event_files(folder: Path, done: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter

    # Files are read in the order of their names, which have the second, then the process number: one begun in the same
    # second as that of a process killed just now might be read before it, and be purged with it.
    second = re.compile(r"tfevents\.0*(\d+)\.")
    stamps = [int(match[1]) for path in folder.glob("*tfevents*") if (match := second.search(path.name))]
    if int(time.time()) in stamps:
        time.sleep(1 - time.time() % 1)
    # Events beyond the checkpoint, of a process that was killed, are hidden by the purge; at step 0 also what was
    # measured before it.
    return SummaryWriter(str(folder), purge_step=done + 1 if done else 0)


def _quietly(before: Callable[[threading.ExceptHookArgs], object]) -> Callable[[threading.ExceptHookArgs], None]:
    """As `before`, but silent where TensorBoard's thread cannot write: the next record raises the very error."""

    def hook(args: threading.ExceptHookArgs) -> None:
        ours = type(args.thread).__module__.startswith("tensorboard.")
        if not (ours and issubclass(args.exc_type, OSError)):
            before(args)

    return hook
