# SPDX-License-Identifier: Apache-2.0
"""Counts in the text format of Prometheus."""

import threading
from collections import Counter

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Metrics:
    """What a server counts; may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: Counter[float] = Counter()
        self._sum, self._batches, self._images = 0.0, 0, 0

    def request(self, path: str, status: int, seconds: float) -> None:
        """One answered request."""
        with self._lock:
            self._requests[path, status] += 1
            self._sum += seconds
            self._seconds[next((bound for bound in _SECONDS if seconds <= bound), float("inf"))] += 1

    def batch(self, size: int) -> None:
        """One forward pass."""
        with self._lock:
            self._batches += 1
            self._images += size

    def text(self, waiting: int) -> str:
        """All counts.

        Args:
            waiting: images in the queue now.
        """
        with self._lock:
            lines = ["# TYPE opendino_requests_total counter"]
            for (path, status), count in sorted(self._requests.items()):
                lines.append(f'opendino_requests_total{{path="{path}",status="{status}"}} {count}')
            lines.append("# TYPE opendino_request_seconds histogram")
            total = 0
            for bound in (*_SECONDS, float("inf")):
                total += self._seconds[bound]
                name = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append(f'opendino_request_seconds_bucket{{le="{name}"}} {total}')
            lines += [f"opendino_request_seconds_sum {self._sum:.6f}", f"opendino_request_seconds_count {total}"]
            for name, value in (("batches", self._batches), ("images", self._images)):
                lines += [f"# TYPE opendino_{name}_total counter", f"opendino_{name}_total {value}"]
            lines += ["# TYPE opendino_waiting_images gauge", f"opendino_waiting_images {waiting}"]
        return "\n".join(lines) + "\n"
