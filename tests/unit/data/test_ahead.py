# SPDX-License-Identifier: Apache-2.0
import itertools
import threading
import time
from dataclasses import replace

import pytest
import torch

from opendino.data.ahead import Ahead, OnItsWay
from opendino.data.collate import PretrainBatch


def batch():
    return PretrainBatch(
        global_crops=torch.arange(24.0).view(2, 3, 2, 2),
        local_crops=torch.empty(0, 3, 0, 0),
        masks=torch.tensor([[True], [False]]),
        mask_indices=torch.tensor([0]),
        masks_weight=torch.tensor([1.0]),
        images=1,
        ids=torch.tensor([7]),
    )


def until(true, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.001)
    return true()


def test_items_come_in_order_and_changed():
    assert list(Ahead(iter(range(50)), lambda number: 2 * number)) == list(range(0, 100, 2))


def test_it_is_one_item_ahead_and_no_more():
    made = []
    ahead = Ahead(itertools.count(), lambda number: made.append(number) or number)
    assert until(lambda: made == [0])  # before anyone asks
    for wanted in range(3):
        assert next(ahead) == wanted
        assert until(lambda wanted=wanted: made == list(range(wanted + 2)))
        time.sleep(0.02)
        assert made == list(range(wanted + 2))
    ahead.close()


def test_making_and_using_take_turns_side_by_side():
    def slowly(number):
        time.sleep(0.05)
        return number

    ahead = Ahead(iter(range(8)), slowly)
    waited = 0.0
    next(ahead)
    for _ in range(7):
        time.sleep(0.06)  # the consumer's own work
        begun = time.perf_counter()
        next(ahead)
        waited += time.perf_counter() - begun
    assert waited < 7 * 0.05 / 2  # one after the other it would be all of it
    ahead.close()


def test_an_error_comes_in_its_turn_and_stays():
    def items():
        yield 1
        raise RuntimeError("the disk is gone")

    ahead = Ahead(items(), lambda number: number)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the disk is gone"):
            next(ahead)
    ahead.close()


def test_an_error_of_what_is_done_to_an_item_comes_too():
    ahead = Ahead(iter([1, 0]), lambda number: 1 / number)
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_close_ends_the_thread_and_leaves_the_rest_to_the_caller():
    items = itertools.count()
    ahead = Ahead(items, lambda number: number)
    assert next(ahead) == 0
    ahead.close()
    assert not ahead._thread.is_alive()
    assert next(items) in (1, 2)  # at most one had been taken out
    ahead.close()


def test_close_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr("opendino.data.ahead._PATIENCE", 0.05)
    stuck = threading.Event()
    ahead = Ahead(iter([0]), lambda _: stuck.wait(10))
    begun = time.monotonic()
    ahead.close()
    assert time.monotonic() - begun < 5
    stuck.set()


def test_on_a_cpu_a_batch_arrives_as_it_is():
    sent = batch()
    taken = OnItsWay(sent, torch.device("cpu"), None).take()
    assert torch.equal(taken.global_crops, sent.global_crops)
    assert taken.ids.tolist() == [7]


class Notes(list):
    """What would be asked of a GPU, in order; a stream, an event and the context of a stream in one."""

    device = torch.device("cpu")

    def __enter__(self):
        self.append("beside")

    def __exit__(self, *_):
        self.append("back")

    def record_event(self):
        self.append("recorded")
        return self


class Present:
    """The stream of the device's own work."""

    def __init__(self, notes):
        self.notes = notes

    def wait_event(self, event):
        assert event is self.notes
        self.notes.append("waited for")


def test_another_stream_copies_and_the_present_one_waits(monkeypatch):
    notes, told, sent = Notes(), [], batch()
    present = Present(notes)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: notes.append(f"device {device}"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: present)
    monkeypatch.setattr(PretrainBatch, "record_stream", lambda self, stream: told.append((self, stream)))
    monkeypatch.setattr(
        PretrainBatch, "to", lambda self, device, **how: notes.append(f"to {device} {how}") or replace(self, images=9)
    )
    on_its_way = OnItsWay(sent, torch.device("cuda"), notes)
    copied = ["device cpu", "beside", "to cpu {'non_blocking': True}", "recorded", "back"]
    assert notes == copied
    taken = on_its_way.take()
    assert taken.images == 9  # the copy
    assert notes == [*copied, "waited for"]
    assert told == [(taken, present)]  # else the copies' memory would be given away while the step reads it


def test_all_tensors_of_a_batch_are_told_of_a_stream(monkeypatch):
    told = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: told.append((self.shape, stream)))
    batch().record_stream("here")
    assert sorted(told) == sorted(
        (one.shape, "here") for one in vars(batch()).values() if isinstance(one, torch.Tensor)
    )
    assert len(told) == 6


def test_closing_in_its_own_thread_does_not_wait_for_itself():
    """As the collection of garbage may."""
    closed = []

    def items():
        yield 0
        ahead.close()
        closed.append(True)
        yield 1

    ahead = Ahead(items(), lambda number: number)
    assert next(ahead) == 0
    assert until(lambda: closed == [True])
