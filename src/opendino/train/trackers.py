# SPDX-License-Identifier: Apache-2.0
"""Where figures are looked at: TensorBoard, Weights & Biases, MLflow, each behind three functions; see `metrics.py`.

A new one is a class with these functions and a line in `open_tracker`.
"""

import contextlib
import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from opendino.config import flatten, read_yaml
from opendino.errors import ConfigError
from opendino.files import write_whole, writing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TrackerName = Literal["tensorboard", "wandb", "mlflow"]
_log = logging.getLogger(__name__)


@runtime_checkable
class Tracker(Protocol):
    """What is asked of a place for figures."""

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        ...

    def flush(self) -> None:
        """Bring what was added to where it is kept."""
        ...

    def close(self) -> None:
        """Nothing more is coming."""
        ...


def open_tracker(name: TrackerName, folder: Path, done: int, project: str) -> Tracker:
    """Open one of them for a run, or go on with it.

    Args:
        name: which.
        folder: of the run.
        done: steps behind the run; what was logged beyond it is hidden, where the tracker can.
        project: what runs are gathered under.

    Raises:
        ConfigError: its package is not installed, or it will not open.
        CheckpointError: its files cannot be written.
    """
    if name == "tensorboard":
        return TensorBoard(folder, done)
    module = _package(name)
    made = {"wandb": WandB, "mlflow": MLflow}[name]
    try:
        return Forgiving(name, made(module, folder, project))
    except Exception as error:  # whatever a service may say
        raise ConfigError(f"log.trackers: {name} cannot be opened ({error}); see to it, or leave it out") from error


class TensorBoard:
    """Event files in `tensorboard/` of the run."""

    def __init__(self, folder: Path, done: int) -> None:
        self._folder = folder / "tensorboard"
        with writing(self._folder):
            self.board = _event_files(self._folder, done)
        self._hook, threading.excepthook = threading.excepthook, _quietly(threading.excepthook)

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        with writing(self._folder):
            for key, value in record.items():
                self.board.add_scalar(key, value, step)

    def flush(self) -> None:
        """Write what is in memory."""
        with writing(self._folder):
            self.board.flush()

    def close(self) -> None:
        """Finish the files."""
        # A full disk has been reported by then, and this must not hide what is being reported.
        with contextlib.suppress(OSError):
            self.board.close()
        threading.excepthook = self._hook


class WandB:
    """A run of Weights & Biases; a resume goes on with it, by a number that follows from the folder."""

    def __init__(self, wandb: ModuleType, folder: Path, project: str) -> None:
        number = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=project, name=folder.name, id=number, resume="allow", dir=str(folder), config=_settings(folder)
        )

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """Add the figures of a step; what it has of later steps, of a process that was killed, it keeps."""
        self._run.log(dict(record), step=step)

    def flush(self) -> None:
        """It sends as it sees fit."""

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI; a resume goes on with it, by the number in `mlflow_run`."""

    def __init__(self, mlflow: ModuleType, folder: Path, project: str) -> None:
        self._mlflow, place = mlflow, folder / "mlflow_run"
        mlflow.set_experiment(project)
        number = place.read_text(encoding="utf-8").strip() if place.is_file() else None
        self._run = mlflow.start_run(run_id=number, run_name=None if number else folder.name)
        if number is None:
            write_whole(place, self._run.info.run_id + "\n")
            mlflow.log_params({key: str(value)[:500] for key, value in _settings(folder).items()})

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        self._mlflow.log_metrics(dict(record), step=step)

    def flush(self) -> None:
        """It sends at once."""

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class Forgiving:
    """Another tracker, which is left alone once it fails: a run must not end because a service does.

    Args:
        name: for the warning.
        tracker: to be called.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._failed = False

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """Add the figures of a step."""
        self._try(lambda: self._tracker.log(step, record))

    def flush(self) -> None:
        """Bring what was added to where it is kept."""
        self._try(self._tracker.flush)

    def close(self) -> None:
        """Nothing more is coming."""
        self._try(self._tracker.close)

    def _try(self, do: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            do()
        except Exception as error:  # whatever a service may say
            self._failed = True
            _log.warning("%s is left alone from here on (%s); metrics.jsonl has everything", self._name, error)


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise ConfigError(f"log.trackers: {name} is not installed; pip install 'opendino[track]'") from None


def _settings(folder: Path) -> dict[str, Any]:
    place = folder / "config.yaml"
    return flatten(read_yaml(place)) if place.is_file() else {}


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
