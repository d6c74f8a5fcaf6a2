# SPDX-License-Identifier: Apache-2.0
"""Locks between commands: a file that one process holds, and that the kernel frees when it ends, however it ends.

Training holds the folder of its run (`train/run_folder.py`), embedding and curation the folder of their results, and
each process of theirs the part that it makes (`stages/folder.py`).
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from opendino.errors import ConfigError

_PAUSE = 0.1  # seconds
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[int] = set()


@contextlib.contextmanager
def locked(path: Path, taken: str, *, patience: float = 1.0) -> Iterator[None]:
    """Hold a lock for the length of a block.

    Args:
        path: of the lock; its folder exists.
        taken: what is said where another process holds it.
        patience: seconds to wait for it; the workers of a process that was killed just now may still be letting go.

    Raises:
        ConfigError: another process holds it.
        OSError: its file cannot be made.
    """
    with holding(path, patience=patience) as mine:
        if not mine:
            raise ConfigError(taken)
        yield


@contextlib.contextmanager
def holding(path: Path, *, patience: float = 0.0) -> Iterator[bool]:
    """Whether this process holds a lock, which it does to the end of the block; the lock's file goes with it.

    Where there is no such lock (Windows, some network disks), every process may go on.

    Args:
        path: of the lock; its folder exists. What stands in it means nothing.
        patience: seconds to wait for it.

    Raises:
        OSError: its file cannot be made.
    """
    fcntl = _fcntl()
    if fcntl is None:
        yield True
        return
    handle = _take(fcntl, path, patience)
    if handle is None:
        yield False
        return
    _held.add(handle)
    try:
        yield True
    finally:
        if handle in _held:  # else this is a forked child, which has let go of what was never its own
            _held.discard(handle)
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(handle)


def _take(fcntl: ModuleType, path: Path, patience: float) -> int | None:
    """Handle of the lock, None where another process holds it to the end of our patience."""
    until = time.monotonic() + patience
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return handle
            os.close(handle)
            if time.monotonic() >= until:
                return None
            time.sleep(_PAUSE)
        else:
            if _is_still(path, handle):
                return handle
            os.close(handle)  # its holder has removed it since we opened it: the next one makes another file


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False


def _fcntl() -> ModuleType | None:
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    return fcntl


def _let_go() -> None:
    """In a forked child, such as a loader's worker: it must not keep the lock of a parent that was killed."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
