# SPDX-License-Identifier: Apache-2.0
"""Memory that a training step frees, kept by the process for its next step, in large pages where the system has them.

The C library gives large pieces back to the system when they are freed, and the next step touches fresh pages again.
Linux with glibc's own `malloc` alone; `train.keep_memory` asks for it.
"""

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import NamedTuple

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of <malloc.h>
_MMAPS = 65_536  # as `malloc` has it by itself
_MADV_HUGEPAGE = 14  # of <sys/mman.h>
_LARGEST = 32 << 20  # a page of 512 MiB, as some systems have, would be touched whole for a byte
_LEAST = 1 << 30  # a smaller reserve is not worth its call

_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_PAGE_SIZE = _PAGES.with_name("hpage_pmd_size")
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


class Kept(NamedTuple):
    """What came of it.

    Attributes:
        kept: whether what is freed stays with the process.
        large: bytes of addresses that get large pages once they are used; 0 where none do.
        told: what was done, or why not, in one line.
    """

    kept: bool
    large: int
    told: str


class _Symbol(ctypes.Structure):
    """`Dl_info` of <dlfcn.h>."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


@functools.cache
def keep_freed_memory() -> Kept:
    """Keep what this process frees for what it allocates next, until it ends; a second call changes nothing more.

    It holds for the whole process and those forked from it, whatever else runs there: its memory does not shrink any
    more, and large arrays of zeros are cleared at once, not where they are first touched. Threads beside the main one
    keep only pieces below 64 MiB. It never raises.
    """
    if sys.platform != "linux":
        return _not("this is not Linux")
    try:
        return _keep(ctypes.CDLL(None))
    except (OSError, AttributeError, ValueError) as error:
        return _not(str(error))


def _not(why: str) -> Kept:
    return Kept(False, 0, f"what is freed goes back to the system: {why}")


def _keep(libc: ctypes.CDLL) -> Kept:
    if not hasattr(libc, "gnu_get_libc_version"):
        return _not("the C library is not glibc")
    home = _home(libc, "gnu_get_libc_version")
    if home is None or _home(libc, "malloc") != home:
        return _not("another malloc than glibc's is loaded")
    # Not the threshold of mmap: older versions refuse one above 32 MiB. Never to trim is -1: 2 GiB would be a limit.
    if not (libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1)):
        libc.mallopt(_M_MMAP_MAX, _MMAPS)
        return _not("mallopt refused")
    try:
        large, why = _reserve(libc)
    except (OSError, AttributeError, ValueError) as error:  # it is kept all the same
        large, why = 0, str(error)
    pages = f"in large pages, {large / 2**30:.1f} GiB of addresses" if large else f"in small pages: {why}"
    return Kept(True, large, f"what is freed is kept for the next step, {pages}")


def _home(libc: ctypes.CDLL, name: str) -> int | None:
    """Where the library is that a function is found in."""
    found = _Symbol()
    libc.dladdr(ctypes.cast(getattr(libc, name), ctypes.c_void_p), ctypes.byref(found))
    return found.base


def _reserve(libc: ctypes.CDLL) -> tuple[int, str]:
    """Make the end of the heap large pages: bytes, or 0 and why there are none. No memory is used by that."""
    chosen = _PAGES.read_text() if _PAGES.is_file() else ""
    if "[madvise]" not in chosen and "[always]" not in chosen:
        return 0, "the system has no transparent huge pages, or has turned them off"
    if _OVERCOMMIT.is_file() and _OVERCOMMIT.read_text().strip() == "2":
        return 0, "the system counts addresses as memory (vm.overcommit_memory = 2)"
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "MALLOC_PERTURB_" in os.environ or any(word in tunables for word in ("perturb", "tagging", "hugetlb")):
        return 0, "MALLOC_PERTURB_ or GLIBC_TUNABLES say otherwise"
    page = int(_PAGE_SIZE.read_text()) if _PAGE_SIZE.is_file() else _LARGEST + 1
    if page > _LARGEST:
        return 0, "the large pages here are too large, or of unknown size"
    import resource  # not everywhere

    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        size = min(size, limit // 4)  # files and threads need addresses too
    while size >= _LEAST:
        # Freed, it is the end of the heap, which is not trimmed any more: what is allocated next lies there.
        place = libc.malloc(size)
        if place and place + size <= libc.sbrk(0):
            begin, end = -(-place // page) * page, (place + size) // page * page
            refused = libc.madvise(begin, end - begin, _MADV_HUGEPAGE)
            libc.free(place)
            return (0, "madvise refused") if refused else (end - begin, "")
        libc.free(place)
        size //= 2
    return 0, "no addresses for them (little memory, ulimit -v or -d, or not the main thread)"
