# SPDX-License-Identifier: Apache-2.0
"""What the system does is asked in processes of their own: it cannot be undone."""

import ctypes
import multiprocessing
import os
import shutil
import subprocess
import sys
from typing import NoReturn

import pytest
import torch

from opendino import memory
from opendino.config import load
from opendino.train import pretrain as training
from opendino.train.config import PretrainConfig

GLIBC = sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names
pytestmark = pytest.mark.skipif(not GLIBC, reason="only glibc's malloc keeps what is freed")
PAGES = memory._PAGES.is_file() and "[never]" not in memory._PAGES.read_text()
COUNTED = memory._OVERCOMMIT.is_file() and memory._OVERCOMMIT.read_text().strip() == "2"

FAULTS = """
import resource
import torch
from opendino.memory import keep_freed_memory

def faults():
    "Pages touched by 48 MiB after 64 were freed; glibc's memalign looks for a little more than it gives."
    torch.ones(16 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""


def _run(code: str, **environment: str) -> list[str]:
    words = [sys.executable, "-W", "error", "-c", code]
    child = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return child.stdout.splitlines()


def _told(before: str = "", **environment: str) -> tuple[bool, int, str]:
    code = f"{before}\nfrom opendino.memory import keep_freed_memory\nprint(*keep_freed_memory(), sep='|')"
    kept, large, told = _run(code, **environment)[-1].split("|")
    return kept == "True", int(large), told


def test_what_was_freed_is_used_again():
    """The same pages, of which the system makes large ones, and none that nobody has used."""
    lines = _run(
        FAULTS
        + """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def flags(place):
    "What the system says of the region that an address is in."
    inside = False
    for line in open("/proc/self/smaps"):
        words = line.split()
        if "-" in words[0]:
            begin, end = (int(word, 16) for word in words[0].split("-"))
            inside = begin <= place < end
        elif inside and words[0] == "VmFlags:":
            return words[1:]

print(faults())
before = resident()
first = keep_freed_memory()
print(resident() - before, first.large)
print(keep_freed_memory() is first)
print(faults(), faults())
print(*flags(torch.ones(16 << 20).data_ptr() + (32 << 20)))  # its beginning may be before the first large page
"""
    )
    more, large = map(int, lines[1].split())
    assert more < 16 << 20
    assert lines[2] == "True"
    assert max(map(int, lines[3].split())) <= 8 < int(lines[0])
    assert bool(large) == (PAGES and not COUNTED)
    assert ("hg" in lines[4].split()) == bool(large)


def test_a_run_does_it_unless_told_not_to(tiny_settings, picture_folder, tmp_path):
    words = [*tiny_settings, f"data={picture_folder}", "train.device=cpu"]
    lines = _run(
        FAULTS
        + f"""
from opendino.config import load
from opendino.train.config import PretrainConfig
from opendino.train.pretrain import pretrain

for kept in ("false", "true"):
    more = ["output_dir={tmp_path}/" + kept, "train.keep_memory=" + kept, "train.iterations=2"]
    pretrain(load(PretrainConfig, None, {words!r} + more))
    print(faults())
"""
    )
    without, with_it = map(int, lines[-2:])
    assert with_it <= 8 < without


@pytest.mark.skipif(not PAGES or COUNTED, reason="no large pages here")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_fewer_addresses_where_there_are_few(limit):
    code = "import resource\nresource.setrlimit(resource.{}, ({}, {}))"
    kept, large, _ = _told(code.format(limit, 6 << 30, 6 << 30))
    assert kept
    assert 1 << 29 < large < 6 << 30
    kept, large, told = _told(code.format(limit, 1 << 30, 1 << 30))
    assert kept
    assert large == 0
    assert "in small pages: no addresses for them" in told


def test_addresses_that_would_be_written_to_are_not_taken():
    for name, value in (("MALLOC_PERTURB_", "7"), ("GLIBC_TUNABLES", "glibc.malloc.perturb=7")):
        kept, large, told = _told(**{name: value})
        assert (kept, large) == (True, 0)
        assert "say otherwise" in told or not PAGES or COUNTED


@pytest.mark.skipif(not PAGES or COUNTED, reason="no large pages here")
@pytest.mark.parametrize("size", ["", str(512 << 20)])
def test_pages_that_are_too_large_are_not_asked_for(size, tmp_path):
    place = tmp_path / "size"
    if size:
        place.write_text(size)
    before = f"import pathlib\nfrom opendino import memory\nmemory._PAGE_SIZE = pathlib.Path({str(place)!r})"
    assert _told(before)[:2] == (True, 0)
    place.write_text(str(4 << 20))
    assert _told(before)[1] % (4 << 20) == 0 != _told(before)[1]


def test_workers_are_there_before(tiny_settings, picture_folder, tmp_path, monkeypatch):
    """They load images in processes forked before, to which it does not apply."""
    found = []

    def listen():
        found.append(len(multiprocessing.active_children()))
        return memory.Kept(True, 0, "listened")

    monkeypatch.setattr(training, "keep_freed_memory", listen)
    words = [f"data={picture_folder}", f"output_dir={tmp_path}/run", *tiny_settings, "train.iterations=1"]
    more = ["train.keep_memory=true", "loader.workers=1"]
    training.pretrain(load(PretrainConfig, None, [*words, *more]))
    assert found == [1]


def test_a_run_on_a_gpu_does_nothing(monkeypatch):
    monkeypatch.setattr(training, "pick_device", torch.device)
    monkeypatch.setattr(training, "keep_freed_memory", lambda: pytest.fail("called"))
    training.keep_memory(load(PretrainConfig, None, ["train.device=cuda", "train.keep_memory=true"]))


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to make another malloc with")
def test_another_malloc_is_left_alone(tmp_path):
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(
        "#include <stddef.h>\nvoid *__libc_malloc(size_t);\nvoid *malloc(size_t n) {return __libc_malloc(n);}"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    kept, large, told = _told(LD_PRELOAD=str(library))
    assert (kept, large) == (False, 0)
    assert told.endswith("another malloc than glibc's is loaded")


def test_elsewhere_nothing_is_done(monkeypatch):
    found = memory._keep(_Nothing())
    assert found == (False, 0, "what is freed goes back to the system: the C library is not glibc")

    def fail(_: object) -> NoReturn:
        raise OSError("no library to be opened")

    monkeypatch.setattr(memory.ctypes, "CDLL", fail)
    assert memory.keep_freed_memory.__wrapped__().told.endswith("no library to be opened")
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory.__wrapped__().told.endswith("this is not Linux")


class _Nothing(ctypes.CDLL):
    """A C library without any of glibc's names."""

    def __init__(self) -> None:
        pass

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(name)


class _Library(_Nothing):
    """A C library that gives up to `most` bytes of addresses and refuses what it is told to refuse."""

    def __init__(self, most: int = 1 << 60, refuses: tuple[int, ...] = (), advice: int = 0) -> None:
        self.asked: list[tuple[int, int]] = []
        self.freed: list[int | None] = []
        self.malloc = lambda size: 4096 if size <= most else None
        self.free = lambda place: self.freed.append(place)
        self.sbrk = lambda _: 1 << 61
        self.madvise = lambda place, size, kind: advice
        self.mallopt = lambda name, value: self.asked.append((name, value)) or int(name not in refuses)
        self.gnu_get_libc_version = None


@pytest.fixture
def _pages(monkeypatch, tmp_path):
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    monkeypatch.setattr(memory, "_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(memory, "_OVERCOMMIT", tmp_path / "none")
    monkeypatch.setattr(memory, "_home", lambda library, name: 1)


@pytest.mark.usefixtures("_pages")
def test_what_is_refused_is_said():
    refusing = _Library(refuses=(memory._M_TRIM_THRESHOLD,))
    assert memory._keep(refusing) == (False, 0, "what is freed goes back to the system: mallopt refused")
    assert refusing.asked[-1] == (memory._M_MMAP_MAX, 65_536)  # as it was
    refusing = _Library(advice=-1)
    kept, large, told = memory._keep(refusing)
    assert (kept, large, refusing.freed) == (True, 0, [4096])
    assert told.endswith("in small pages: madvise refused")


@pytest.mark.usefixtures("_pages")
def test_only_whole_large_pages_are_asked_for():
    library = _Library(most=3 << 30)
    _, large, _ = memory._keep(library)
    assert 1 << 30 <= large <= 3 << 30
    assert large % (2 << 20) == 0
    assert library.freed[-1] == 4096
    memory._PAGES.write_text("always madvise [never]\n")
    assert memory._keep(library)[:2] == (True, 0)
    memory._PAGES.write_text("[always] madvise never\n")
    memory._OVERCOMMIT.with_name("none").write_text("2\n")
    assert "overcommit" in memory._keep(library).told
