# SPDX-License-Identifier: Apache-2.0
"""How many CPU threads a run computes with: tried out at its first start, then kept, so that a resume is bit-equal.

More is often slower: on busy or hyper-threaded cores two threads can wait for each other at every small product.
"""

import os
import time
from collections.abc import Callable, Sequence

import torch

_GAIN = 0.9  # more threads are taken only for at least a tenth less time


def choose_threads(wanted: int, cores: int, work: Callable[[], object]) -> int:
    """Number of threads for a run on the CPU.

    Args:
        wanted: setting; 0 leaves the choice to OMP_NUM_THREADS or, where that is not set, to a short trial.
        cores: most threads that are tried.
        work: a piece of the run's own work.
    """
    environment = os.environ.get("OMP_NUM_THREADS", "")
    if wanted or environment.isdigit():
        return wanted or max(int(environment), 1)
    candidates = [1]
    while candidates[-1] * 2 <= cores:
        candidates.append(candidates[-1] * 2)
    if candidates[-1] != cores > 1:
        candidates.append(cores)
    return fastest(candidates, work)


def fastest(candidates: Sequence[int], work: Callable[[], object], repeats: int = 3) -> int:
    """The number of threads with which `work` takes the least time; of near equals the smallest.

    Leaves torch's own number of threads as it was.

    Args:
        candidates: rising numbers of threads.
        work: called once to warm up and `repeats` times for each candidate; its best time counts.
        repeats: see `work`.
    """
    if len(candidates) == 1:
        return candidates[0]
    before = torch.get_num_threads()
    best, least = candidates[0], float("inf")
    try:
        for threads in candidates:
            torch.set_num_threads(threads)
            work()
            seconds = min(_time(work) for _ in range(repeats))
            if seconds < _GAIN * least:
                best, least = threads, seconds
    finally:
        torch.set_num_threads(before)
    return best


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
