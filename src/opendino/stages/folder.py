# SPDX-License-Identifier: Apache-2.0
"""The folder of one stage: what is being made, which parts are finished, and the provenance of the whole.

| file                | says                                                                                |
|---------------------|-------------------------------------------------------------------------------------|
| `plan.json`         | what the outputs are being made from; another plan removes them                     |
| `part-00007.*`      | one shard, each file written whole; the `.parquet` is written last and says finished |
| `done.json`         | the plan, counts, and size and SHA-256 of every output                              |

No file holds a time or a machine's name, so equal inputs give equal bytes. Read next: `engines.py`.
"""

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from opendino import __version__
from opendino.distributed import is_main, together
from opendino.errors import DataError
from opendino.files import is_leftover, read_json, write_whole, writing
from opendino.locks import holding, locked

_PLAN, _DONE, _LOCK, _LOCKS, _OWNER = "plan.json", "done.json", ".writer.lock", ".locks", "owner"
_PATIENCE = 60.0  # seconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A stage's folder and what it is made from.

    Attributes:
        folder: of the outputs.
        name: of the stage.
        inputs: name of each input to its digest.
        parameters: settings that the outputs depend on.
    """

    folder: Path
    name: str
    inputs: Mapping[str, str]
    parameters: Mapping[str, Any]

    @property
    def plan(self) -> dict[str, Any]:
        """What `plan.json` says; code of another version makes another plan."""
        made_by = f"opendino {__version__}"
        return _as_json({"stage": self.name, "made_by": made_by, "inputs": self.inputs, "parameters": self.parameters})

    def is_done(self) -> bool:
        """Whether all outputs are there, in their full size, and made from this plan."""
        done = _read(self.folder / _DONE)
        return done is not None and done["plan"] == self.plan and not _damaged(self.folder, done)

    def begin(self) -> None:
        """Make the folder ready: finished parts of this very plan stay, all else goes.

        Raises:
            ConfigError: a worker of an earlier run does not end.
            DataError: the folder cannot be written, or holds what is not ours.
        """
        _no_strangers(self.folder)
        _take_over(self.folder)
        done = _read(self.folder / _DONE)
        if _read(self.folder / _PLAN) != self.plan:
            clear(self.folder)
        elif done is not None:
            for name in _damaged(self.folder, done):
                (self.folder / name).unlink(missing_ok=True)
                marker(self.folder, _number(name)).unlink(missing_ok=True)
            (self.folder / _DONE).unlink(missing_ok=True)
        for leftover in self.folder.glob(".*.partial"):
            if is_leftover(leftover.name, leftover.name[1:].rsplit(".", 2)[0]):
                leftover.unlink(missing_ok=True)
        write_whole(self.folder / _PLAN, json.dumps(self.plan, indent=1) + "\n", error=DataError)

    def finish(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Write `done.json`.

        Args:
            counts: what came out, for people and for the report.
        """
        outputs = {}
        for path in _outputs(self.folder):
            outputs[str(path.relative_to(self.folder))] = [path.stat().st_size, sha256(path)]
        done = {"plan": self.plan, "counts": _as_json(counts), "outputs": outputs}
        write_whole(self.folder / _DONE, json.dumps(done, indent=1) + "\n", durable=True, error=DataError)
        shutil.rmtree(self.folder / _LOCKS, ignore_errors=True)
        return done


def counts_of(folder: Path) -> dict[str, Any]:
    """Counts of a finished stage.

    Raises:
        DataError: it is not finished.
    """
    return _finished(folder)["counts"]


def plan_of(folder: Path) -> dict[str, Any]:
    """Plan of a finished stage.

    Raises:
        DataError: it is not finished.
    """
    return _finished(folder)["plan"]


def digest_of(folder: Path) -> str:
    """Digest of a finished stage's outputs: equal bytes, equal digest.

    Raises:
        DataError: it is not finished.
    """
    done = _finished(folder)
    return hashlib.sha256(json.dumps(done["outputs"], sort_keys=True).encode()).hexdigest()[:32]


def marker(folder: Path, part: int) -> Path:
    """The file of a part that is written last."""
    return folder / f"part-{part:05d}.parquet"


def parts_of(folder: Path) -> list[Path]:
    """Finished parts, in order."""
    return sorted(folder.glob("part-*.parquet"))


def write_table(path: Path, table: pa.Table) -> Path:
    """Write Parquet whole."""
    return write_whole(path, lambda place: pq.write_table(table, place, compression="zstd"), error=DataError)


def write_array(path: Path, array: Shaped[np.ndarray, "..."]) -> Path:
    """Write `.npy` whole."""

    def save(place: Path) -> None:
        with place.open("wb") as file:
            # Through Python's own write: into a real file numpy writes past it, and does not notice where the disk is
            # full at the last bytes. By the file's name it would add a suffix.
            np.save(SimpleNamespace(write=file.write), array)  # pyrefly: ignore[bad-argument-type]

    return write_whole(path, save, error=DataError)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only command that works in a folder of results; every rank calls it, and the main process holds the lock.

    Args:
        folder: of a stage, or of several; it is made.

    Raises:
        ConfigError: another command works there.
        DataError: it cannot be made.
    """
    with ExitStack() as lock:
        with together():
            if is_main():
                _hold(folder, lock)
        yield


def _hold(folder: Path, lock: ExitStack) -> None:
    said = (
        f"{folder}: another process is writing here; wait for it or stop it, or name another folder (processes that "
        "are to share the work are started by torchrun, with engine.name=torchrun)"
    )
    if not folder.exists():
        lock.callback(_remove_empty, folder)
    with writing(folder, DataError):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.enter_context(locked(folder / _LOCK, said))
        except OSError as error:
            # What cannot be written can still be found finished; if it is not, the first file to be written tells.
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise


def _remove_empty(folder: Path) -> None:
    """After a command that has failed before its first file."""
    with suppress(OSError):
        folder.rmdir()


def owner_of(folder: Path) -> str:
    """The run that a stage's folder belongs to now, as its last beginning has noted it; empty where there is none."""
    try:
        return (folder / _LOCKS / _OWNER).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


@contextmanager
def claimed(folder: Path, part: int, owner: str | None = None) -> Iterator[bool]:
    """Whether this process is the one to make a part; the claim ends with the process, however it ends.

    Args:
        folder: of the stage.
        part: its number.
        owner: the run whose work this is; where the folder belongs to another by now, nobody is. None for whichever.
    """
    locks = folder / _LOCKS
    with writing(locks, DataError):
        locks.mkdir(parents=True, exist_ok=True)
    with holding(locks / f"{part:05d}") as mine:
        # Asked after the claim, so that who takes the folder over either sees the claim or is seen here.
        yield mine and (owner is None or owner_of(folder) == owner)


def _take_over(folder: Path) -> None:
    """Make a folder that of a new run: workers that outlive theirs begin no more parts, and are waited for."""
    locks = folder / _LOCKS
    write_whole(locks / _OWNER, secrets.token_hex(8), error=DataError)
    until = time.monotonic() + _PATIENCE
    for path in sorted(locks.iterdir()):
        if not path.name.isdigit():
            continue
        said = (
            f"{folder}: a worker of an earlier run is still making part {int(path.name)}; wait for its end, or stop "
            "it, and give the same command again"
        )
        with holding(path) as free:
            if not free:
                _log.warning("%s: waits for a worker of an earlier run, which still makes part %d", folder.name,
                             int(path.name))  # fmt: skip
        if not free:
            with writing(path, DataError), locked(path, said, patience=max(until - time.monotonic(), 0)):
                pass


def clear(folder: Path) -> None:
    """Remove a stage's outputs.

    Raises:
        DataError: the folder holds files that no stage wrote.
    """
    if not folder.exists():
        return
    _no_strangers(folder)
    (folder / _DONE).unlink(missing_ok=True)
    for path in [*_outputs(folder), *folder.glob(".*.partial")]:
        path.unlink(missing_ok=True)
    (folder / _PLAN).unlink(missing_ok=True)


def _no_strangers(folder: Path) -> None:
    if not folder.exists() or (folder / _PLAN).is_file():
        return
    ours = (_LOCK, _LOCKS)
    if any(path.name not in ours and not is_leftover(path.name, _PLAN) for path in folder.iterdir()):
        raise DataError(f"{folder}: holds files and no plan of what wrote them; name an empty folder with out=")


def sha256(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(source: str) -> str:
    """What changes when the files of a source change, as far as their folder or file can tell."""
    if source.startswith("hf:"):
        return source
    path = Path(source).expanduser()
    files = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    if not files or not files[0].exists():
        raise DataError(f"{source}: there is no such file or folder (working folder {Path.cwd()}); name another")
    return ", ".join(f"{file} {_stamp(file)}" for file in files)


def _stamp(path: Path) -> str:
    if path.is_file():
        at = path.stat()
        return f"{at.st_size} {at.st_mtime_ns}"
    # A folder's own time changes with its names; those of its sub-folders with theirs.
    found = hashlib.sha256()
    for folder, below, files in os.walk(path):
        below.sort()
        found.update(f"{folder} {len(files)} {Path(folder).stat().st_mtime_ns}\n".encode(errors="surrogateescape"))
    return found.hexdigest()[:16]


def _finished(folder: Path) -> dict[str, Any]:
    done = _read(folder / _DONE)
    if done is None:
        raise DataError(f"{folder}: this stage is not finished; run `opendino curate {folder.name} ...` first")
    return done


def _outputs(folder: Path) -> list[Path]:
    """Everything a stage made: files beside plan and provenance, hidden ones and those of other stages left out."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name not in (_PLAN, _DONE) and p.name[0] != ".")


def _damaged(folder: Path, done: dict[str, Any]) -> list[str]:
    """Outputs that are gone or of another size."""
    found = []
    for name, (size, _) in done["outputs"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            found.append(name)
    return found


def _number(name: str) -> int:
    digits = "".join(c for c in Path(name).stem if c.isdigit())
    return int(digits or -1) if name.startswith("part-") else -1


def _read(path: Path) -> dict[str, Any] | None:
    """A plan, or what a finished stage says; None where it is missing, or was altered into something else."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or (path.name == _DONE and not _is_done(content)):
        return None
    return content


def _is_done(content: dict[str, Any]) -> bool:
    outputs = content.get("outputs")
    return (
        all(isinstance(content.get(name), dict) for name in ("plan", "counts", "outputs"))
        and isinstance(outputs, dict)
        and all(Path(name).name == name and isinstance(said, list) and len(said) == 2 for name, said in outputs.items())
    )


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be read back: tuples are lists, paths and infinities text."""
    return json.loads(json.dumps(value, default=str))
