# SPDX-License-Identifier: Apache-2.0
"""How far a folder of shards has come, told once in a while with the time that is left; used by `folder.py`.

Shards are counted on the disk, so it does not matter which process makes them; within a long shard, which one process
makes alone, its images are counted.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opendino.distributed import is_main
from opendino.stages.folder import parts_of

_log = logging.getLogger(__name__)


@contextmanager
def watching(folder: Path, parts: int, every: float = 5.0) -> Iterator[None]:
    """Log the number of finished shards whenever it has grown, while the block runs.

    Args:
        folder: of the shards.
        parts: shards in all.
        every: seconds between two looks.
    """
    if parts < 2 or not is_main():
        yield
        return
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder, parts, len(parts_of(folder)), every, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _watch(folder: Path, parts: int, first: int, every: float, over: threading.Event) -> None:
    start, told = time.perf_counter(), first
    while not over.wait(every):
        done = len(parts_of(folder))
        if done > told:
            _log.info(line(done, parts, done - first, time.perf_counter() - start))
            told = done


class Within:
    """Counts images of one shard, and tells of them where it takes long.

    Args:
        images: in the shard.
        every: seconds between two lines.
    """

    def __init__(self, images: int, every: float = 10.0) -> None:
        self.images, self.every, self.done = images, every, 0
        self.start = self.told = time.perf_counter()

    def add(self, images: int) -> None:
        """So many more are done."""
        self.done += images
        now = time.perf_counter()
        if now - self.told >= self.every and self.done < self.images:
            _log.info("%s", line(self.done, self.images, self.done, now - self.start, "images of this shard"))
            self.told = now


def line(done: int, parts: int, made: int, seconds: float, things: str = "shards") -> str:
    """What is told: things that are there, and the time that the rest will take at the pace so far."""
    left = seconds / made * (parts - done)
    return (
        f"{done} of {parts} {things}, {left / 60:.0f} min left"
        if left >= 90
        else (f"{done} of {parts} {things}, {left:.0f} s left")
    )
