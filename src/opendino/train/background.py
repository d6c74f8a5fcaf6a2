# SPDX-License-Identifier: Apache-2.0
"""One piece of work at a time behind the training steps, such as writing a checkpoint; errors come to light later."""

import threading
from collections.abc import Callable


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
        self._thread = threading.Thread(target=self._run, args=(job,), name="opendino background")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the job, and raise what went wrong with it, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error
