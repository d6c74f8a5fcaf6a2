# SPDX-License-Identifier: Apache-2.0
"""Logging for people (rich on stderr) and for programs (one JSON object a line)."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from opendino.distributed import is_main
from opendino.files import write_whole


def setup(level: int = logging.INFO) -> None:
    """Send the package's log records to stderr, from the main process only."""
    from rich.console import Console
    from rich.logging import RichHandler

    logger = logging.getLogger("opendino")
    logger.handlers.clear()
    logger.propagate = False
    console = Console(stderr=True)
    if not is_main():
        handler: logging.Handler = logging.NullHandler()
    elif console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=level < logging.INFO)
    else:  # a file or a pipe: one record, one line
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(level)


class JsonLines:
    """Append-only file of JSON objects, each written whole and flushed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: Mapping[str, object]) -> None:
        """Append one record as one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict]:
        """All whole records; a last line that a killed process left unfinished is dropped."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def truncate(self, key: str, beyond: int) -> None:
        """Drop the records whose `key` is greater than `beyond` (a resumed run writes them again).

        Raises:
            CheckpointError: the file cannot be written.
        """
        kept = [record for record in self.read() if record.get(key, 0) <= beyond]
        write_whole(self.path, "".join(json.dumps(record) + "\n" for record in kept))
