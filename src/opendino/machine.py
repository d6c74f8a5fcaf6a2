# SPDX-License-Identifier: Apache-2.0
"""What of the machine this process may use; devices and memory are in `train/settings.py`."""

import os


def usable_cores() -> int:
    """CPU cores that this process may run on; fewer than the machine has where it was given a part of it."""
    return len(usable_processors()) or os.cpu_count() or 1


def usable_processors() -> frozenset[int]:
    """Numbers of the CPU cores that this process may run on; empty where the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def cores() -> int:
    """CPU cores for this process: its share, where several of a run are on one machine."""
    return max(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
