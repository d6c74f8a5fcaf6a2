# SPDX-License-Identifier: Apache-2.0
"""How far the training of a head has come, told once in a while with the time that is left; used by protocols."""

import logging
import time

_log = logging.getLogger(__name__)


class Pace:
    """Tells of the first step, of the last, and of one in ten seconds between them.

    Args:
        what: name of the protocol.
        steps: in all.
        every: seconds between two lines.
    """

    def __init__(self, what: str, steps: int, every: float = 10.0) -> None:
        self.what, self.steps, self.every = what, steps, every
        self._first: tuple[int, float] | None = None
        self._told = 0.0

    def due(self, step: int) -> bool:
        """Whether this step, counted from 0, is to be told; asked once a step, when it is done."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._told = (step, now), now
            return True
        if step == self.steps - 1 or now - self._told >= self.every:
            self._told = now
            return True
        return False

    def tell(self, step: int, figures: str) -> None:
        """Log a step that is due.

        Args:
            step: counted from 0.
            figures: what it came to, such as "loss 1.234".
        """
        done, left = step + 1, self.steps - step - 1
        first, began = self._first or (step, time.monotonic())
        seconds = left * (time.monotonic() - began) / max(step - first, 1)
        until = f"; {int(seconds // 60)}:{int(seconds % 60):02d} left" if left and step > first else ""
        _log.info("%s: step %d of %d, %s%s", self.what, done, self.steps, figures, until)
