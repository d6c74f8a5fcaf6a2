# SPDX-License-Identifier: Apache-2.0
"""Figures of a run: `metrics.jsonl`, one JSON object a line, and trackers; a resume leaves no gap and no double."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opendino.errors import ConfigError
from opendino.files import to_disk, writing
from opendino.logs import JsonLines
from opendino.train.trackers import Tracker, TrackerName, open_tracker


@dataclass(frozen=True)
class LogConfig:
    """What is written down while training; none of it changes a number.

    Attributes:
        every: steps between two records in `metrics.jsonl`; every loss is checked at every step all the same.
        trackers: where figures go besides `metrics.jsonl`: "tensorboard", "wandb", "mlflow".
        project: what runs are gathered under in wandb and MLflow.
        picture: draw the first batch's crops and masks into `first_batch.png`.
    """

    every: int = 10
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    project: str = "opendino"
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
        self._trackers: list[Tracker] = []
        if not writes:
            return
        if self._lines.path.exists():
            self._lines.truncate("step", done or -1)  # at step 0 also what was measured before it
        names, project = dict.fromkeys(config.trackers), config.project
        for name in names:
            self._trackers.append(open_tracker(name, folder, done, project))

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
        for tracker in self._trackers:
            tracker.log(step, record)

    def to_disk(self) -> None:
        """Bring all records to the disk; called before a checkpoint that relies on them."""
        if self._writes and self._lines.path.exists():
            to_disk(self._lines.path)
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Finish what the trackers hold."""
        for tracker in self._trackers:
            tracker.close()
