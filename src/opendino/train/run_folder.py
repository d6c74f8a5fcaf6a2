# SPDX-License-Identifier: Apache-2.0
"""Whose folder this is: `config.yaml` and `run.json` of a run, and whether another command may continue it."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opendino import __version__, locks
from opendino.config import difference, fields_of, leaves, read_yaml, to_yaml
from opendino.config import flatten as flatten_tree
from opendino.errors import CheckpointError, ConfigError
from opendino.files import is_leftover, read_json, write_whole

FREE_TO_CHANGE = (
    *("output_dir", "checkpoint.", "log.", "knn.", "watch.", "train.threads", "train.device"),
    *("loader.workers", "loader.prefetch", "loader.max_bad_rate", "loader.min_bad_count", "drift.", "adapt.held_out"),
    *("loader.photometric", "loader.thread", "masks.pad", "dino.in_blocks", "dino.needed_tokens"),
    *("parallel.", "train.accumulate", "train.max_not_finite", "train.keep_memory", "optim.fused"),
    *("distill.teacher", "distill.cache"),  # wherever they are by now: the teacher's weights are compared
)
"""Settings that a resumed run may change: none changes what is computed, some of them but for rounding."""

_VERBS = {"distill": "distill", "origin": "adapt"}
"""Group of settings that one kind of run alone has -> its verb."""

_PATHS = ("data",)
_SHOWN = 6

LOCK = "run.lock"
"""File inside a run that its one writing process holds locked, and removes at its end."""

_OURS = ("config.yaml", "run.json", LOCK)


@dataclass(frozen=True)
class Stored:
    """What a run folder says of its run.

    Attributes:
        settings: dotted keys to values, resolved.
        chosen: those among them that were chosen for the user, with the values chosen.
        facts: what else was found at the start, such as the number of images.
        command: words it was started with.
    """

    settings: dict[str, Any]
    chosen: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()


def read(folder: Path) -> Stored | None:
    """The run in a folder; None where the folder is new or empty.

    Raises:
        ConfigError: the folder holds something else.
        CheckpointError: it holds a run whose files cannot be read.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ConfigError(f"output_dir = {folder} is a file; name a folder")
    if not (folder / "run.json").is_file():
        # A process was killed before run.json stood: `write` replaces what it left.
        names = [path.name for path in folder.iterdir()]
        strangers = [name for name in names if name not in _OURS and not is_leftover(name, *_OURS)]
        if strangers:
            raise ConfigError(
                f"output_dir = {folder} holds files that are not of a run, such as {min(strangers)}; "
                "name a new or an empty folder"
            )
        return None
    try:
        run = read_json(folder / "run.json")
        settings = flatten_tree(read_yaml(folder / "config.yaml"))
        if not (isinstance(run["chosen"], dict) and isinstance(run["facts"], dict)):
            raise TypeError("chosen or facts are none")
        newest = run.get("continued", [{}])[-1].get("facts", {})  # it may compute otherwise since
        return Stored(settings, run["chosen"], run["facts"] | newest, tuple(map(str, run["command"])))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # a ConfigError is a ValueError
        raise CheckpointError(f"{folder}: its run cannot be read ({error}); name another output_dir") from None


def check_kind(folder: Path, stored: Stored, kind: type) -> None:
    """Refuse to continue a run by another verb than it was started by.

    Args:
        folder: of the run.
        stored: what the folder says.
        kind: the settings of this command.

    Raises:
        ConfigError: it is a run of another kind.
    """
    theirs, ours = _verb(stored.settings), _verb(fields_of(kind))
    if theirs != ours:
        raise ConfigError(
            f"output_dir = {folder} holds a run of opendino {theirs}, which opendino {ours} cannot continue; name "
            f"another output_dir, or continue that run by opendino {theirs}"
        )


def _verb(keys: Iterable[str]) -> str:
    groups = {key.partition(".")[0] for key in keys}
    return next((verb for group, verb in _VERBS.items() if group in groups), "pretrain")


def check_same(folder: Path, stored: Stored, config: object, facts: Mapping[str, Any]) -> None:
    """Refuse to continue a run with other settings than it was started with.

    Args:
        folder: of the run.
        stored: what the folder says.
        config: of this command.
        facts: what this command found, such as the number of images.

    Raises:
        ConfigError: they differ in something that changes numbers; the message names all of it.
    """
    check_kind(folder, stored, type(config))
    before = _begun_with(stored, config)
    now = {key: value for key, value in leaves(config).items() if key in before}
    differing = difference({key: before[key] for key in now}, now)
    differing = {
        key: pair
        for key, pair in differing.items()
        if not key.startswith(FREE_TO_CHANGE) and not (key in _PATHS and _same_path(*pair))
    }
    differing |= {
        key: (stored.facts[key], value) for key, value in facts.items() if stored.facts.get(key, value) != value
    }
    if differing:
        # What tells one run from another first.
        order = sorted(differing, key=lambda key: (key not in _PATHS, key not in facts))
        changes = ", ".join(f"{key} was {differing[key][0]} and is now {differing[key][1]}" for key in order[:_SHOWN])
        more = f" and {len(order) - _SHOWN} more" if len(order) > _SHOWN else ""
        words = " ".join(stored.command[1:])
        begun = f" (it was started with: {words})" if words else ""
        raise ConfigError(
            f"output_dir = {folder} holds a run with other settings: {changes}{more}; "
            f"give the settings of that run to continue it{begun}, or name another output_dir"
        )


def changes(stored: Stored, config: object) -> dict[str, Any]:
    """Settings that are others now than those the run was started with; of those that may change."""
    before = _begun_with(stored, config)
    now = {key: value for key, value in leaves(config).items() if key in before}
    return {key: pair[1] for key, pair in difference({key: before[key] for key in now}, now).items()}


def _begun_with(stored: Stored, config: object) -> dict[str, Any]:
    """Settings of the run's start: one that has come since had its default then, and one without follows from others.

    Among them are some that have gone since.
    """
    defaults = {key: value for key, value in leaves(type(config)()).items() if value is not None}
    return defaults | stored.settings


def _same_path(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def write(folder: Path, config: object, stored: Stored) -> None:
    """Write `config.yaml` and `run.json`; a killed process leaves both, or a folder that counts as new."""
    write_whole(folder / "config.yaml", to_yaml(config), durable=True)
    run = {
        "opendino": __version__,
        "command": list(stored.command),
        "chosen": stored.chosen,
        "facts": stored.facts,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "versions": versions(),
        "machine": platform.platform(),
        "commit": commit(),
    }
    write_whole(folder / "run.json", json.dumps(run, indent=1) + "\n", durable=True)


def write_continued(folder: Path, stored: Stored, config: object, step: int, computing: Mapping[str, Any]) -> None:
    """Add to `run.json` that, from which step on, and with which other settings the run went on.

    Args:
        folder: of the run; this process is its writer.
        stored: what the folder says of its start.
        config: of this command.
        step: that the run is at.
        computing: facts of this process that an earlier one may not share: threads, processes, device.

    Raises:
        CheckpointError: `run.json` cannot be read any more.
    """
    now = {
        "step": step,
        "command": list(command_line()),
        "settings": changes(stored, config),
        "facts": dict(computing),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "machine": platform.platform(),
        "commit": commit(),
    }
    try:
        run = read_json(folder / "run.json")
        run["continued"] = [*run.get("continued", ()), now]
    except (OSError, ValueError, TypeError, AttributeError) as error:  # another writer's
        raise CheckpointError(f"{folder}: its run cannot be read ({error}); name another output_dir") from None
    write_whole(folder / "run.json", json.dumps(run, indent=1) + "\n", durable=True)


def versions() -> dict[str, str]:
    """Versions of what decides about numbers."""
    import numpy
    import PIL
    import torch

    return {"opendino": __version__, "torch": torch.__version__, "numpy": numpy.__version__, "pillow": PIL.__version__}


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder; not on a disk that is mounted read-only, whoever asks."""
    return os.access(folder, os.W_OK)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder as its only writer; the kernel lets go when the process ends, however it ends.

    Args:
        folder: of the run; it exists.

    Raises:
        ConfigError: another process holds it, or the folder cannot be written.
    """
    said = f"output_dir = {folder}: another process is writing this run; wait for it or stop it, or name another"
    with ExitStack() as lock:
        try:
            lock.enter_context(locks.locked(folder / LOCK, said))
        except OSError as error:
            raise ConfigError(f"output_dir = {folder} cannot be written ({error.strerror}); name another") from None
        yield


class Claim:
    """Makes a run's folder when a run begins, and takes it back if the run never gets going.

    A start that fails must not leave a folder behind that the next start stumbles over. Use as a context around
    everything up to the first finished step, and call `keep` then.

    Args:
        folder: of the run.
        kept: the folder holds a run already.
    """

    def __init__(self, folder: Path, kept: bool = False) -> None:
        self.folder = folder
        self._made: list[Path] = []
        self._kept = kept
        self._before: set[Path] = set()
        self._lock, self._locked = ExitStack(), False

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if not self._kept:
                self._undo()

    def lock(self) -> None:
        """Become the only writer of a folder that is there; what is in it is ours to take back from here on.

        Raises:
            ConfigError: another process is writing it, or it cannot be written.
        """
        self._lock.enter_context(locked(self.folder))

    def make(self) -> None:
        """Create the folder of a new run and those above it, and lock it.

        Raises:
            ConfigError: it cannot be created, or another process has begun a run in it.
        """
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"output_dir = {self.folder} cannot be made ({error.strerror}); name another") from None
        before = {*self.folder.iterdir()} - {self.folder / LOCK}
        self.lock()
        if (self.folder / "run.json").exists():
            raise ConfigError(
                f"output_dir = {self.folder}: another process has begun a run here meanwhile; give the same command "
                "again to continue it, or name another output_dir"
            )
        self._made, self._before, self._locked = missing, before, True

    def keep(self) -> None:
        """The run is under way: what is in the folder stays."""
        self._kept = True

    def _undo(self) -> None:
        if not self._locked:  # never ours: another process writes there
            return
        if self._made:
            shutil.rmtree(self.folder, ignore_errors=True)
            for path in self._made[1:]:
                try:
                    path.rmdir()
                except OSError:  # something of somebody else has come into it
                    break
        elif self.folder.is_dir():
            for path in set(self.folder.iterdir()) - self._before:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def commit() -> str | None:
    """Commit of the checkout that this package runs from; None elsewhere."""
    home = Path(__file__).parents[3]
    if not (home / ".git").exists():
        return None
    asked = subprocess.run(
        ["git", "-C", str(home), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or None


def command_line() -> tuple[str, ...]:
    """Words this process was started with."""
    return tuple(sys.argv)
