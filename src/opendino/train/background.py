# SPDX-License-Identifier: Apache-2.0
"""One piece of work at a time behind the training steps, such as writing a checkpoint; errors come to light later."""

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Background:
    """Does a job in a thread of its own, or at once.

    Args:
        threaded: whether jobs run beside the caller.
    """

    def __init__(self, threaded: bool) -> None:
        self._threaded = threaded
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], object]) -> None:
        """Begin a job; the one before it has been waited for."""
        if not self._threaded:
            self._run(job)
            return
        # Of a process that ends in spite of it (`settle`), it must not keep the process.
        self._thread = threading.Thread(target=self._run, args=(job,), name="opendino background", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the job, and raise what went wrong with it, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def settle(self, seconds: float = 60.0) -> None:
        """Where something else has gone wrong: give the job time to end, and say what became of it."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                _log.warning("what was being written is not through after %g s and is given up", seconds)
        if self._error is not None:
            _log.warning("%s", self._error)

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error
