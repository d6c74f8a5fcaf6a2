# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run that survive a kill at any moment; `train/state.py` says what is in them.

A checkpoint is a folder `checkpoints/step_%08d` of safetensors files and one `state.json`, written under another name,
brought to the disk and then renamed: it exists whole or not at all. Nothing in it is a pickle.
"""

import contextlib
import errno
import json
import logging
import math
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from opendino.checkpoint._folders import make_partial, partial_of, settle, sha256, whole
from opendino.checkpoint._saved import Saved, find
from opendino.errors import CheckpointError, ConfigError
from opendino.files import read_json, save_tensors, to_disk, write_whole

FORMAT = 2
"""Raised when a reader of the older layout could misread the newer one: from 2 on a part may be cut into files."""
_READ = (1, 2)
_WAIT, _PAUSE = 3600.0, 0.02  # seconds

_FOLDER = re.compile(r"^step_(\d{8,})$")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointConfig:
    """How often a run is saved, and what is kept.

    Attributes:
        every: steps between two checkpoints; the last step is always saved.
        minutes: a checkpoint is also written when so many have passed since the last one; 0 for never.
        keep: newest checkpoints that are kept.
        milestone_every: checkpoints at multiples of this step are kept for good; 0 keeps none.
        asynchronous: copy what is to be written into the memory of the CPU and write it while training goes on.
    """

    every: int = 1000
    minutes: float = 30.0
    keep: int = 2
    milestone_every: int = 0
    asynchronous: bool = False

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("minutes", 0), ("keep", 1), ("milestone_every", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"checkpoint.{name} = {getattr(self, name)} is too small; use {least} or more")
        if not math.isfinite(self.minutes):
            raise ConfigError(f"checkpoint.minutes = {self.minutes} is no time; use minutes, or 0 for never")


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        folder: where it was read.
        step: optimisation steps done when it was written.
        tensors: part ("student", "optimizer", ...) to name to tensor, on the CPU.
        meta: plain values that came with them.
    """

    folder: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]


class Opened(NamedTuple):
    """A checkpoint as a `Checkpoint`, of whose tensors nothing has been read yet."""

    folder: Path
    step: int
    tensors: dict[str, dict[str, Saved]]
    meta: dict[str, Any]


class Share(NamedTuple):
    """Which of the processes that write or read a checkpoint this one is.

    Attributes:
        number: of this process; 0 puts the checkpoint together.
        of: processes that write, or read.
    """

    number: int = 0
    of: int = 1


def save(
    output_dir: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: Mapping[str, Any],
    config: CheckpointConfig | None = None,
    share: Share | None = None,
) -> Path:
    """Write a checkpoint and drop those that are no longer kept; earlier ones stay whole if this fails.

    Where several processes write, `begin` comes first, on process 0; then all call this with their shares, into a
    folder that all of them see. They do not talk to each other meanwhile: each leaves a note beside its files, and
    process 0 waits for the notes.

    Args:
        output_dir: folder of the run.
        step: optimisation steps done.
        tensors: part to name to tensor, any device; a part becomes a file. With several processes: their shares, cut
            along the first axis in the order of the processes, and on process 0 also what is not cut.
        meta: plain values that JSON can hold.
        config: what is kept.
        share: which process this is; None for the only one.

    Returns:
        Folder of the checkpoint.

    Raises:
        CheckpointError: it cannot be written, for example for want of space; nothing half-written is left.
    """
    home, share = output_dir / "checkpoints", share or Share()
    final = folder_of(output_dir, step)
    try:
        if share.number:
            _write_share(partial_of(final), tensors, share)
            return final
        with whole(final, made=share.of > 1) as partial:
            files = _write_share(partial, tensors, share)
            notes = [partial / _note(number) for number in range(1, share.of)]
            # All of them first: where one fails, the others must not write into a folder that is being removed.
            for note, found in zip(notes, [_wait_for(note) for note in notes], strict=True):
                if "fault" in found:
                    raise OSError(errno.EIO, f"another process: {found['fault']}")
                for part, entry in found["parts"].items():
                    files.setdefault(part, []).append(entry)
                note.unlink()
            state = {"format": FORMAT, "step": step, "parts": files, "meta": dict(meta)}
            (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_cannot_write(home, step, error)) from error
    prune(output_dir, config or CheckpointConfig(), step)
    return final


def begin(output_dir: Path, step: int) -> None:
    """Make the folder that several processes will write their shares of a checkpoint into.

    Raises:
        CheckpointError: it cannot be made.
    """
    home = output_dir / "checkpoints"
    try:
        make_partial(folder_of(output_dir, step))
    except OSError as error:
        raise CheckpointError(_cannot_write(home, step, error)) from error


def _write_share(partial: Path, tensors: Mapping[str, Mapping[str, Tensor]], share: Share) -> dict[str, list[Any]]:
    """Write the files of one process; all but process 0 leave a note of them, or of what went wrong."""
    suffix = f"-{share.number:05d}-of-{share.of:05d}" if share.of > 1 else ""
    written: dict[str, list[Any]] = {}
    try:
        for part, group in tensors.items():
            written[part] = [_write_part(partial / f"{part}{suffix}.safetensors", group)]
        note: dict[str, Any] = {"parts": {part: entries[0] for part, entries in written.items()}}
    except (OSError, SafetensorError) as error:
        for part in tensors:  # makes room for the note
            with contextlib.suppress(OSError):
                (partial / f"{part}{suffix}.safetensors").unlink(missing_ok=True)
        if share.number:
            write_whole(partial / _note(share.number), json.dumps({"fault": _cause(error)}))
        raise
    if share.number:
        for path in partial.glob(f"*{suffix}.safetensors"):
            to_disk(path)
        write_whole(partial / _note(share.number), json.dumps(note), durable=True)
    return written


def _wait_for(note: Path) -> dict[str, Any]:
    """What another process has written or why it could not, as soon as it has."""
    deadline = time.monotonic() + _WAIT
    while not note.is_file():
        if time.monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, f"{note.name} did not come; is the folder one that all processes see?")
        time.sleep(_PAUSE)
    return json.loads(note.read_text(encoding="utf-8"))


def _note(number: int) -> str:
    return f"share_{number:05d}.json"


def prune(output_dir: Path, config: CheckpointConfig, written: int | None = None) -> None:
    """Drop all checkpoints but the newest `config.keep` whole ones and the milestones; damaged ones are set aside.

    Args:
        output_dir: folder of the run.
        config: what is kept.
        written: step of the checkpoint just written, which stays whatever else is there.
    """
    folders = _folders(output_dir)
    # A damaged one must not take the place of a whole one: then nothing would be left to continue from.
    damaged = {step: folder for step, folder in folders.items() if _fault(folder) is not None}
    for folder in damaged.values():
        aside = folder.with_name(f"{folder.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        _log.warning("%s is damaged and was set aside as %s; remove it when you like", folder, aside.name)
    steps = sorted(folders.keys() - damaged.keys())
    for step in _spare(steps, folders, config.keep, written):
        if step != written and (config.milestone_every == 0 or step % config.milestone_every):
            # Renamed first: a kill in the middle of removing must not leave a folder that looks whole.
            doomed = output_dir / "checkpoints" / f".step_{step:08d}.partial"
            shutil.rmtree(doomed, ignore_errors=True)
            folders[step].rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def catch_up(output_dir: Path, config: CheckpointConfig) -> None:
    """Drop what a process was killed before it could drop; nothing where the folder can only be read.

    No checkpoint is trusted here, as none has just been written: those that stay are read to the last byte first.
    """
    passing = [step for step in _folders(output_dir) if not config.milestone_every or step % config.milestone_every]
    if len(passing) > config.keep:
        with contextlib.suppress(OSError):
            prune(output_dir, config)


def _spare(steps: list[int], folders: Mapping[int, Path], keep: int, written: int | None) -> list[int]:
    """Steps older than the newest `keep` that are whole to the last byte; those are read only if something is older."""
    whole = 0
    for position in range(len(steps) - 1, 0, -1):
        step = steps[position]
        altered = None if step == written else _altered(folders[step])
        if altered is not None:
            _log.warning("%s is damaged, so an older one is kept: %s", folders[step], altered)
            continue
        whole += 1
        if whole == keep:
            return steps[:position]
    return []


def clean(output_dir: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    home = output_dir / "checkpoints"
    for leftover in home.glob(".step_*.previous"):
        settle(home / leftover.stem.lstrip("."))
    for leftover in home.glob(".step_*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def folder_of(output_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return output_dir / "checkpoints" / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    """Steps done when a checkpoint was written, by the name of its folder."""
    return int(folder.name.removeprefix("step_"))


def latest(output_dir: Path) -> Path | None:
    """Newest whole checkpoint of a run; damaged ones are passed over with a warning. None where there is none at all.

    Raises:
        CheckpointError: there are some, and none is whole: a run must not begin anew over them unasked.
    """
    folders = _folders(output_dir)
    for _, folder in sorted(folders.items(), reverse=True):
        fault = _fault(folder)
        if fault is None:
            return folder
        _log.warning("%s is passed over: %s", folder, fault)
    if folders:
        raise CheckpointError(
            f"{output_dir}/checkpoints: no checkpoint there is whole, of {len(folders)} (see above for why); put one "
            "back, or remove them to begin this run anew"
        )
    return None


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint, every byte checked against the hash that was stored with it.

    Args:
        folder: of the checkpoint.

    Raises:
        CheckpointError: a file is missing, altered, or of a layout this version does not know.
    """
    found = opened(folder)
    tensors = {part: {name: saved.rows() for name, saved in group.items()} for part, group in found.tensors.items()}
    return Checkpoint(folder, found.step, tensors, found.meta)


def opened(folder: Path, share: Share | None = None) -> Opened:
    """Open a checkpoint whose tensors are read when and as far as they are asked for.

    Args:
        folder: of the checkpoint.
        share: which process this is, where several open the same; each checks the hashes of its share of the files.

    Raises:
        CheckpointError: as `load`.
    """
    fault = _fault(folder)
    if fault is not None:
        raise CheckpointError(f"{folder}: {fault}; remove this folder and the run continues from an earlier checkpoint")
    state = read_json(folder / "state.json")
    if state.get("format") not in _READ:
        raise CheckpointError(
            f"{folder}: is of layout {state.get('format')}, this version reads {FORMAT}; use the version that wrote it"
        )
    altered = _altered(folder, share or Share())
    if altered is not None:
        raise CheckpointError(f"{folder}/{altered}; remove {folder} and the run continues from an earlier checkpoint")
    try:
        tensors = {part: find([folder / entry["name"] for entry in files]) for part, files in state["parts"].items()}
    except (OSError, SafetensorError) as error:  # another process checks the hash of this file
        raise CheckpointError(
            f"{folder}: cannot be read ({error}); remove this folder and the run continues from an earlier checkpoint"
        ) from None
    return Opened(folder, state["step"], tensors, state["meta"])


def check_fit(where: str, found: Mapping[str, Tensor | Saved], wanted: Mapping[str, Tensor | Saved]) -> None:
    """Compare names and shapes before anything is copied.

    Raises:
        CheckpointError: they differ; the message names the first differences.
    """
    lacks, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [
        f"{name} is {'x'.join(map(str, found[name].shape))} and not {'x'.join(map(str, tensor.shape))}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    faults = [f"lacks {_few(lacks)}"] * bool(lacks) + [f"has also {_few(extra)}"] * bool(extra) + other[:3]
    if faults:
        raise CheckpointError(
            f"{where}: is of another shape than this run's model ({'; '.join(faults)}); "
            "give the settings it was written with, or another output_dir"
        )


def _write_part(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _folders(output_dir: Path) -> dict[int, Path]:
    home = output_dir / "checkpoints"
    if not home.is_dir():
        return {}
    matches = ((_FOLDER.match(path.name), path) for path in home.iterdir())
    return {int(match[1]): path for match, path in matches if match}


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint as far as names and sizes tell; None where nothing is."""
    try:
        state = read_json(folder / "state.json")
        if not (isinstance(state["step"], int) and isinstance(state["meta"], dict)):
            raise TypeError("step or meta are none")
        for entry in (entry for files in state["parts"].values() for entry in files):
            if not isinstance(entry["sha256"], str) or Path(entry["name"]).name != entry["name"]:
                raise ValueError(f"{entry['name']!r} is not a file beside it")
            size = (folder / entry["name"]).stat().st_size
            if size != entry["bytes"]:
                return f"{entry['name']} has {size} bytes instead of {entry['bytes']}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"state.json cannot be read ({error})"
    return None


def _altered(folder: Path, share: Share | None = None) -> str | None:
    """The first file whose bytes are not those that were written; None where all are. Reads everything, or a share."""
    state, share = json.loads((folder / "state.json").read_text(encoding="utf-8")), share or Share()
    for entry in [entry for files in state["parts"].values() for entry in files][share.number :: share.of]:
        if sha256(folder / entry["name"]) != entry["sha256"]:
            return f"{entry['name']}: its bytes are not those that were written"
    return None


def _cannot_write(home: Path, step: int, error: Exception) -> str:
    kept = sorted(_folders(home.parent))
    onwards = f"continues from step {kept[-1]}" if kept else "starts again"
    return (
        f"{home}: the checkpoint of step {step} could not be written ({_cause(error)}; {_free(home)} MB free); "
        f"make room and give the same command, the run {onwards}"
    )


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]


def _free(folder: Path) -> int:
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free // 2**20


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
