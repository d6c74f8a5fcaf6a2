# SPDX-License-Identifier: Apache-2.0
import asyncio
import threading
import time

import pytest

from opendino.errors import ConfigError
from opendino.serve.batching import BatchConfig, Batcher, BusyError


def run(story):
    return asyncio.run(asyncio.wait_for(story(), 30))


def test_things_that_come_together_go_together():
    async def story():
        sizes = []
        batcher = Batcher(lambda things: [2 * one for one in things], BatchConfig(batch=4, wait_ms=50.0), sizes.append)
        await batcher.start()
        answers = await asyncio.gather(*(batcher([i, 10 + i]) for i in range(3)))
        await batcher.stop()
        return answers, sizes

    answers, sizes = run(story)
    assert answers == [[0, 20], [2, 22], [4, 24]]
    assert sizes == [4, 2]


def test_a_full_queue_says_no_and_recovers():
    async def story():
        open_door = threading.Event()

        def work(things):
            open_door.wait(10)
            return list(things)

        batcher = Batcher(work, BatchConfig(batch=1, wait_ms=0.0, queue=2))
        await batcher.start()
        first = asyncio.create_task(batcher([0]))
        await asyncio.sleep(0.05)  # in work now, no longer waiting
        more = [asyncio.create_task(batcher([i])) for i in (1, 2)]
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError):
            await batcher([3])
        with pytest.raises(BusyError):
            await batcher.alone(lambda: 1)
        open_door.set()
        answers = [await task for task in (first, *more)]
        again = await batcher([4])
        left = batcher.waiting
        await batcher.stop()
        return answers, again, left

    assert run(story) == ([[0], [1], [2]], [4], 0)


def test_a_broken_batch_does_not_end_the_server():
    async def story():
        def work(things):
            if 13 in things:
                raise RuntimeError("thirteen")
            return list(things)

        batcher = Batcher(work, BatchConfig(batch=1))
        await batcher.start()
        with pytest.raises(RuntimeError, match="thirteen"):
            await batcher([13])
        answer = await batcher([1])
        await batcher.stop()
        return answer

    assert run(story) == [1]


def test_who_has_gone_is_not_worked_for():
    async def story():
        seen = []

        def work(things):
            seen.extend(things)
            time.sleep(0.1)
            return list(things)

        batcher = Batcher(work, BatchConfig(batch=1, wait_ms=0.0))
        await batcher.start()
        first = asyncio.create_task(batcher([1]))
        gone = asyncio.create_task(batcher([2]))
        await asyncio.sleep(0.03)
        gone.cancel()
        await first
        await batcher([3])
        await batcher.stop()
        return seen, batcher.waiting

    assert run(story) == ([1, 3], 0)


def test_numbers_that_do_not_fit():
    with pytest.raises(ConfigError, match="give 1 or more"):
        BatchConfig(batch=0)
