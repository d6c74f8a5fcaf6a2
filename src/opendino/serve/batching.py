# SPDX-License-Identifier: Apache-2.0
"""Requests that come together go through the model together, within a bound on waiting; a full queue says no.

One thread runs the model. An image waits for others at most `wait_ms`, or until `batch` of them are there; where
`queue` images wait already, `BusyError` is raised at once, so the queue never grows beyond what can be answered.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from opendino.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")


class BusyError(Exception):
    """The queue is full; to be tried again a moment later."""


@dataclass(frozen=True)
class BatchConfig:
    """How requests are put together.

    Attributes:
        batch: most images in a forward pass.
        wait_ms: longest time that an image waits for others.
        queue: most images that wait; beyond it requests are refused.
    """

    batch: int = 16
    wait_ms: float = 5.0
    queue: int = 64

    def __post_init__(self) -> None:
        if self.batch < 1 or self.queue < 1 or self.wait_ms < 0:
            raise ConfigError("batching.batch and batching.queue: give 1 or more; batching.wait_ms: 0 or more")


class Batcher(Generic[T, R]):
    """The queue before a function of many things.

    Args:
        work: called in one thread with up to `config.batch` things; gives one result for each.
        config: see `BatchConfig`.
        watch: called with the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Sequence[R]],
        config: BatchConfig = BatchConfig(),
        watch: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self.work, self.config, self.watch = work, config, watch
        self.waiting = 0
        self._queue: asyncio.Queue[tuple[T, asyncio.Future[R]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to work; inside a running loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Give up what waits."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown(wait=True)

    async def __call__(self, things: Sequence[T]) -> list[R]:
        """Results of some things, in their order.

        Raises:
            BusyError: they do not fit into the queue.
        """
        if self.waiting + len(things) > self.config.queue:
            raise BusyError
        loop = asyncio.get_running_loop()
        self.waiting += len(things)
        futures: list[asyncio.Future[R]] = []
        for thing in things:
            future: asyncio.Future[R] = loop.create_future()
            futures.append(future)
            self._queue.put_nowait((thing, future))
        try:
            return list(await asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()

    async def alone(self, work: Callable[[], Any]) -> Any:  # noqa: ANN401  whatever the work gives
        """Something else that needs the model, in its thread, counted in the queue.

        Raises:
            BusyError: the queue is full.
        """
        if self.waiting >= self.config.queue:
            raise BusyError
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self.waiting -= 1

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            until = loop.time() + self.config.wait_ms / 1000
            while len(batch) < self.config.batch:
                if not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                    continue
                left = until - loop.time()
                if left <= 0:
                    break
                with contextlib.suppress(TimeoutError):
                    batch.append(await asyncio.wait_for(self._queue.get(), left))
            self.waiting -= len(batch)
            # Whoever asked may have gone meanwhile.
            batch = [(thing, future) for thing, future in batch if not future.done()]
            if batch:
                await self._answer(loop, batch)

    async def _answer(self, loop: asyncio.AbstractEventLoop, batch: list[tuple[T, "asyncio.Future[R]"]]) -> None:
        self.watch(len(batch))
        try:
            results = await loop.run_in_executor(self._thread, self.work, [thing for thing, _ in batch])
        except Exception as error:  # one broken batch must not end the server
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
