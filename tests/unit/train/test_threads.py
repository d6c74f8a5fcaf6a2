# SPDX-License-Identifier: Apache-2.0
import time

import pytest
import torch

from opendino.train.threads import choose_threads, fastest


class Work:
    """Takes a time that depends on torch's number of threads, on a clock of its own."""

    now = 0.0

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, []

    def __call__(self):
        self.calls.append(torch.get_num_threads())
        Work.now += self.seconds[torch.get_num_threads()]


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: Work.now)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_fastest_is_taken(one_thread):
    work = Work({1: 0.03, 2: 0.005, 4: 0.05})
    assert fastest([1, 2, 4], work) == 2
    assert set(work.calls) == {1, 2, 4}
    assert torch.get_num_threads() == 1


def test_of_near_equals_the_smallest(one_thread):
    assert fastest([1, 2], Work({1: 0.040, 2: 0.0385})) == 1


def test_what_is_said_is_taken(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads(7, 2, list) == 7
    assert choose_threads(0, 2, list) == 3


def test_candidates_are_powers_of_two_and_all_cores(monkeypatch, one_thread):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    work = Work({1: 0.02, 2: 0.02, 4: 0.001, 6: 0.02})
    assert choose_threads(0, 6, work) == 4
    assert list(dict.fromkeys(work.calls)) == [1, 2, 4, 6]


def test_a_single_core_is_not_tried(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert choose_threads(0, 1, list) == 1
