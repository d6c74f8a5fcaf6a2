# SPDX-License-Identifier: Apache-2.0
"""Files that exist whole or not at all; folders are in `checkpoint/_folders.py`."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opendino.errors import CheckpointError, ConfigError, OpendinoError, advice

if TYPE_CHECKING:
    from torch import Tensor

_PARTIAL = ".partial"
_TENSORS = "*.safetensors"
_TRIED = 4096  # bytes: a full disk still takes names


def write_whole(
    path: Path,
    content: str | Callable[[Path], object],
    *,
    durable: bool = False,
    error: type[OpendinoError] = CheckpointError,
) -> Path:
    """Write a file under another name and put it in its place: a reader never sees half of it.

    Args:
        path: a file of that name is replaced; its folder is made.
        content: text, written as UTF-8, or a function that writes a file to the path it is given.
        durable: wait until the bytes and the name are on the disk.
        error: raised where the disk says no.

    Returns:
        The path.

    Raises:
        OpendinoError: as `error` says; the earlier file is as it was, and nothing half-written is left.
    """
    # The number of the process keeps two writers of one file apart.
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with writing(path, error):
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                partial.write_text(content, encoding="utf-8")
            else:
                content(partial)
            if durable:
                to_disk(partial)
            partial.replace(path)
            if durable:
                to_disk(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def save_tensors(tensors: "Mapping[str, Tensor]", path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, with the mode that any new file gets: the library's own can be read by us alone.

    Args:
        tensors: contiguous, on the CPU, none sharing memory with another.
        path: of the file.
        metadata: plain words in the file's head.

    Raises:
        OSError: it cannot be written.
        safetensors.SafetensorError: likewise, or a tensor is none that it takes.
    """
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    with contextlib.suppress(OSError):  # some disks know no modes
        path.chmod(mode)


@contextlib.contextmanager
def usual_modes(folder: Path) -> Iterator[None]:
    """The same for files of tensors that the block lets another library write: as before, or as any new file.

    Args:
        folder: of the files; it may be made in the block.
    """
    before = {path: path.stat().st_mode for path in folder.glob(_TENSORS)}
    yield
    for path in folder.glob(_TENSORS):
        with contextlib.suppress(OSError):
            mode = before[path] if path in before else _usual_mode(folder)
            if path.stat().st_mode != mode:
                path.chmod(mode)


def _usual_mode(folder: Path) -> int:
    """Of a new file, found by making one: to ask for the umask would be to set it, for other threads too."""
    probe = folder / f".mode.{os.getpid()}{_PARTIAL}"
    try:
        probe.touch()
        return probe.stat().st_mode
    finally:
        probe.unlink(missing_ok=True)


def read_json(path: Path) -> Any:  # noqa: ANN401  whatever the file holds
    """What a file of JSON holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or none that anyone wrote: nested without measure.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def is_leftover(name: str, *of: str) -> bool:
    """Whether a file's name is one that `write_whole`, killed in the middle, leaves of a file named in `of`."""
    return name.endswith(_PARTIAL) and name.startswith(tuple(f".{file}." for file in of))


@contextlib.contextmanager
def writing(path: Path, error: type[OpendinoError] = CheckpointError) -> Iterator[None]:
    """Turn what the disk says while a file is written into a sentence.

    Args:
        path: of the file, for the sentence.
        error: raised.

    Raises:
        OpendinoError: as `error` says; the file could not be written, for example for want of space.
    """
    try:
        yield
    except OSError as fault:
        raise error(
            f"{path}: could not be written ({fault.strerror or fault}); {advice(fault)} and give the same command again"
        ) from fault


def check_place(folder: Path, said: str = "") -> None:
    """Refuse a place for results before the work for them begins, where it could not take them; leaves no trace.

    Args:
        folder: that files are to be written into; neither it nor those above it need be there yet.
        said: what the sentence begins with, such as "out = PATH"; by default the folder.

    Raises:
        ConfigError: nothing can be written there: a part of the path is a file, or the disk says no.
    """
    import tempfile  # here, for `opendino --help` to be fast

    try:
        home = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=home) as nameless:
            nameless.write(bytes(_TRIED))
    except OSError as fault:
        cause = fault.strerror or fault
        raise ConfigError(f"{said or folder} cannot be written ({cause}); {advice(fault)}") from None


def to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
