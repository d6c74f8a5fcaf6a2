# SPDX-License-Identifier: Apache-2.0
"""Who makes the parts of a stage: processes of this machine, the ranks of torchrun, or a Ray cluster.

A task is a frozen dataclass that makes one part, given its number, into files under names that depend on nothing
else; so every engine gives the same bytes, and a part that is there is never made again.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from opendino import distributed
from opendino.errors import ConfigError, DataError
from opendino.stages.folder import Stage, claimed, marker, owner_of

_log = logging.getLogger(__name__)


@runtime_checkable
class Task(Protocol):
    """Makes one part of a stage; travels to other processes."""

    @property
    def folder(self) -> Path:
        """Of the stage."""
        ...

    def __call__(self, part: int) -> None:
        """Make the part; its marker is written last."""
        ...


@dataclass(frozen=True)
class Engine:
    """Where parts are made.

    Attributes:
        name: "local", "torchrun" or "ray".
        workers: processes (local) or actors (ray); 1 works in this process with all threads.
        gpus: GPUs that each Ray actor holds.
        address: of a Ray cluster; empty starts one on this machine.
    """

    name: Literal["local", "torchrun", "ray"] = "local"
    workers: int = 1
    gpus: float = 0.0
    address: str = ""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"engine.workers = {self.workers}: give 1 or more")


def run_stage(stage: Stage, engine: Engine, parts: int, task: Task, sum_up: Callable[[], dict]) -> bool:
    """Make what is missing of a stage; every rank calls it.

    Args:
        stage: what is made.
        engine: who makes it.
        parts: how many.
        task: makes one.
        sum_up: writes what belongs to the whole and gives the counts; called by the main process only.

    Returns:
        Whether anything had to be done.

    Raises:
        DataError: a part could not be made; finished ones stay.
    """
    done = stage.is_done()
    distributed.barrier()  # nobody begins while another still looks
    if done:
        _log.info("%s: nothing to do", stage.name)
        return False
    with distributed.together():
        if distributed.is_main():
            stage.begin()
    if engine.name == "torchrun":
        run_parts(engine, parts, task)  # a rank that fails ends at once, and with it, by the launcher, the others
        distributed.barrier()
    else:
        with distributed.together():
            if distributed.is_main():  # what is local is one process's work
                run_parts(engine, parts, task)
    with distributed.together():
        if distributed.is_main():
            _none_lost(parts, task)
            stage.finish(sum_up())
    return True


def run_whole(stage: Stage, make: Callable[[], dict]) -> bool:
    """Make a stage that has no parts: one process's work; every rank calls it.

    Args:
        stage: what is made.
        make: writes all of it and gives the counts.

    Returns:
        Whether anything had to be done.
    """
    return run_stage(stage, Engine(), 0, _NoParts(stage.folder), make)


@dataclass(frozen=True)
class _NoParts:
    """Task of a stage without parts."""

    folder: Path

    def __call__(self, part: int) -> None:
        """Never called."""


def run_parts(engine: Engine, parts: int, task: Task) -> None:
    """Make all missing parts; under torchrun this rank's share, and what others have not claimed.

    Raises:
        DataError: a part could not be made, or a process died.
    """
    missing = [part for part in range(parts) if not marker(task.folder, part).exists()]
    owner = owner_of(task.folder)
    if len(missing) < parts:
        _log.info("%s: %d of %d parts are there", task.folder.name, parts - len(missing), parts)
    if engine.name == "ray" and (len(missing) > 1 or (missing and engine.gpus)):
        _ray(engine, missing, task, owner)
    elif engine.name == "torchrun":
        start = len(missing) * distributed.rank() // distributed.world_size()
        for part in missing[start:] + missing[:start]:
            _make(task, part, owner)
    elif engine.workers == 1 or len(missing) < 2:  # for one part processes or actors take longer to start
        for part in missing:
            _make(task, part, owner)
    else:
        _processes(min(engine.workers, len(missing)), missing, task, owner)


def _none_lost(parts: int, task: Task) -> None:
    lost = [part for part in range(parts) if not marker(task.folder, part).exists()]
    if lost:
        raise DataError(
            f"{task.folder}: parts {lost[:5]} are missing though all were made; is the folder on a disk that every "
            "process sees?"
        )


def _make(task: Task, part: int, owner: str) -> None:
    if marker(task.folder, part).exists():
        return
    with claimed(task.folder, part, owner) as mine:
        if mine and not marker(task.folder, part).exists():
            task(part)


def _processes(workers: int, missing: list[int], task: Task, owner: str) -> None:
    # Fresh processes: a fork of one that has run torch's threads may hang.
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_set_up, initargs=(workers,)) as pool:
        futures = [pool.submit(_make, task, part, owner) for part in missing]
        try:
            for future in futures:
                future.result()
        except BrokenProcessPool:
            raise DataError(
                f"{task.folder}: a worker was killed, perhaps for want of memory; give the same command again, with "
                "fewer engine.workers"
            ) from None
        finally:
            for future in futures:
                future.cancel()


def _set_up(workers: int) -> None:
    """In a worker: its share of the cores, and no life beyond that of the process whose work it does."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max((os.cpu_count() or 1) // workers, 1))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()  # also of one that was killed
        os._exit(1)  # what it was writing has no name yet, and goes at the next start


class _Actor:
    """Ray's side: one part a call."""

    def __init__(self, task: Task, owner: str) -> None:
        self.task, self.owner = task, owner

    def __call__(self, batch: dict) -> dict:
        for part in batch["item"]:
            _make(self.task, int(part), self.owner)
        return batch


def check_engine(engine: Engine) -> None:
    """Check that what an engine needs is installed.

    Raises:
        ConfigError: it is not.
    """
    if engine.name != "ray":
        return
    try:
        import ray.data  # pyrefly: ignore[missing-import]  an extra  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"engine.name = ray: Ray Data cannot be imported ({error}); pip install 'opendino[ray]'"
        ) from None


def _ray(engine: Engine, missing: list[int], task: Task, owner: str) -> None:
    check_engine(engine)
    import ray  # pyrefly: ignore[missing-import]
    import ray.data  # pyrefly: ignore[missing-import]

    if not ray.is_initialized():
        ray.init(log_to_driver=False, **_cluster(engine))
        # Stages tell their own progress; Ray's would be a dozen lines each ten seconds.
        ray.data.DataContext.get_current().enable_progress_bars = False
    # Without this every part of a small stage is one block for one actor.
    items = ray.data.from_items(missing, override_num_blocks=len(missing))
    work = items.map_batches(
        _Actor,
        fn_constructor_args=(task, owner),
        batch_size=1,
        num_cpus=1,
        num_gpus=engine.gpus or None,
        compute=ray.data.ActorPoolStrategy(size=min(engine.workers, len(missing))),
    )
    try:
        work.materialize()
    except ray.exceptions.RayError as error:
        raise DataError(f"{task.folder}: Ray stopped ({str(error).strip().splitlines()[-1]})") from error


def _cluster(engine: Engine) -> dict[str, Any]:
    """What ray.init is told: the cluster to join, or one of this machine that is just large enough."""
    address = engine.address or os.environ.get("RAY_ADDRESS", "")
    if address:
        return {"address": address}
    # A processor for what feeds the actors; only numbers of parts go through the object store.
    cores = max(engine.workers + 1, os.cpu_count() or 1)
    return {"address": "local", "num_cpus": cores, "include_dashboard": False, "object_store_memory": 128 << 20}


@contextmanager
def met(engine: Engine) -> Iterator[None]:
    """Be one of the ranks of torchrun where the engine says so; leave them at the end.

    Raises:
        ConfigError: engine.name = torchrun without torchrun.
    """
    if engine.name != "torchrun":
        yield
        return
    if "RANK" not in os.environ and not distributed.is_initialized():
        raise ConfigError(
            "engine.name = torchrun: no launcher is there; start it by `torchrun --nproc-per-node N -m opendino "
            "curate ...`"
        )
    with distributed.joined():
        yield
