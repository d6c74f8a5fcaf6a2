# SPDX-License-Identifier: Apache-2.0
"""`opendino eval table`: results files side by side, as Markdown; on a terminal in lines that fit."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from opendino.cli._words import split
from opendino.errors import ConfigError


def main(argv: Sequence[str]) -> int:
    """Print the tables of files and folders; with out=FILE append them there too."""
    places, words = split(argv, most=1000)
    out = ""
    for word in words:
        name, _, value = word.partition("=")
        if name != "out":
            raise ConfigError(f"opendino eval table: {word}: no such setting; the only one is out=FILE.md")
        out = value
    if not places:
        raise ConfigError("opendino eval table: name results files, runs, or folders of results")
    from opendino.eval._table import gather, tables
    from opendino.files import check_place, writing

    if out:
        check_place(Path(out).parent, f"out = {out}")
    results = gather(places)
    print(tables(results, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    if out:
        path = Path(out)
        with writing(path, ConfigError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{tables(results)}\n\n")
    return 0
