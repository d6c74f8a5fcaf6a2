# SPDX-License-Identifier: Apache-2.0
"""The next item of an iterator, made ready by a thread while the one before it is used; `loaders.py` feeds GPUs so."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from opendino.data.collate import PretrainBatch

Raw = TypeVar("Raw")
Ready = TypeVar("Ready")

_PATIENCE = 10.0
"""Seconds that `close` waits for an item on its way; a worker that hangs must not keep the process."""


class Ahead(Generic[Raw, Ready]):
    """An iterator over what becomes of another one's items, one item ahead of who takes them.

    Args:
        items: read by the thread alone from now on; never ended here.
        ready: what is done to each item, in the thread.
    """

    def __init__(self, items: Iterator[Raw], ready: Callable[[Raw], Ready]) -> None:
        self.items = items
        self._ready, self._over = ready, False
        self._room, self._found = threading.Semaphore(1), queue.SimpleQueue[tuple[Ready | None, BaseException | None]]()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="opendino batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> "Ahead[Raw, Ready]":
        return self

    def __next__(self) -> Ready:
        """The next item; an error of the iterator or of `ready` comes when its turn has come, and stays."""
        if self._error is None:
            item, self._error = self._found.get()
            if self._error is None:
                self._room.release()
                return item  # pyrefly: ignore[bad-return]  without an error there is an item
        raise self._error

    def close(self) -> None:
        """End the thread; the iterator is the caller's again."""
        self._over = True
        self._room.release()
        if threading.current_thread() is not self._thread:  # which may collect garbage that is closed by this
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        error = None
        while error is None:
            self._room.acquire()
            if self._over:
                return
            item = None
            try:
                item = self._ready(next(self.items))
            except BaseException as found:
                error = found
            self._found.put((item, error))


class OnItsWay:
    """A batch on its way to a device; made in one thread, taken by another.

    Args:
        batch: in page-locked memory for a GPU.
        device: where it goes.
        stream: of a GPU, on which it is copied; None for other devices.
    """

    def __init__(self, batch: PretrainBatch, device: torch.device, stream: Any) -> None:  # noqa: ANN401  torch's own
        if stream is None:
            self._batch, self._there = batch.to(device), None
            return
        # A thread begins on the first GPU, and leaving the stream would go back there and make a context on it.
        torch.cuda.set_device(stream.device)
        # Beside what the device computes. What the batch leaves in page-locked memory torch keeps until it is read.
        with torch.cuda.stream(stream):
            self._batch = batch.to(stream.device, non_blocking=True)
            self._there = stream.record_event()

    def take(self) -> PretrainBatch:
        """The batch, for the device's present stream."""
        if self._there is not None:
            here = torch.cuda.current_stream(self._there.device)
            here.wait_event(self._there)
            self._batch.record_stream(here)
        return self._batch


@dataclass(frozen=True)
class NotBrought:
    """An error on the way to the device, such as its memory running out; no fault of who made the batch."""

    error: Exception


def bring_to(device: torch.device) -> Callable[[Any], Any]:
    """What a thread does with each batch: an `OnItsWay` or a `NotBrought`; what is no batch goes on as it is."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def bring(batch: Any) -> Any:  # noqa: ANN401  as above
        try:
            return OnItsWay(batch, device, stream) if isinstance(batch, PretrainBatch) else batch
        except Exception as error:
            return NotBrought(error)

    return bring
