# SPDX-License-Identifier: Apache-2.0
"""Tables of the documents from what the benchmarks found: each between markers, rewritten in place.

    python benchmarks/tables.py

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; `TABLES` names the commands it needs and the
function that makes its rows of their last lines, JSON. Where one of the commands is not in
benchmarks/results/measured/, the table stays as it is. The line below a table, made too, says the command, the machine,
the date and the commit.
"""

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "results" / "measured"


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """What is kept of each command, by the command."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {f"{one['script']} {one['words']}".strip(): one for one in found}


def title(one: dict[str, Any]) -> str:
    """A line: command, machine, torch, date, commit."""
    return f"`python benchmarks/{one['script']}.py {one['words']}`"


def refresh_all(root: Path) -> None:
    """Every document."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    refresh_all(ROOT)


if __name__ == "__main__":
    main()
