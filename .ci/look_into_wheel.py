# SPDX-License-Identifier: Apache-2.0
"""What a wheel and an sdist hold: the package and its recipes, all of it, and nothing else."""

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
META = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
STRAY = ("tests", "benchmarks", "docs", "runs", "build", "dist", ".ci", ".venv", ".git/")
LIMIT = 8 * 2**20


def look(wheel: Path, sdist: Path) -> list[str]:
    """Complaints, none where both are as they should be."""
    with zipfile.ZipFile(wheel) as archive:
        names = {one.filename for one in archive.infolist() if not one.is_dir()}
        info = next(name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(f"{info}/METADATA").decode()
        entry = archive.read(f"{info}/entry_points.txt").decode()
    wanted = {f"{info}/{name}" for name in META}
    for folder, inside in (("src/opendino", "opendino"), ("configs", "opendino/configs")):
        wanted |= {f"{inside}/{one}" for one in _files(ROOT / folder)}
    wrong = [f"{wheel.name} lacks {name}" for name in sorted(wanted - names)]
    wrong += [f"{wheel.name} has a stray {name}" for name in sorted(names - wanted)]
    wrong += [] if "opendino = opendino.cli.main:entry" in entry else [f"{wheel.name}: no command"]
    wrong += [] if "opendino/py.typed" in names else [f"{wheel.name}: no py.typed"]
    for line in ("License-Expression: Apache-2.0", "Requires-Python: >=3.11", "Provides-Extra: hf"):
        wrong += [] if line in metadata else [f"{wheel.name}: no '{line}'"]
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wrong += [f"{sdist.name} has {name}" for name in sorted(held) if name.startswith(STRAY)]
    wrong += [f"{sdist.name} lacks {name}" for name in ("pyproject.toml", "LICENSE", "README.md") if name not in held]
    wrong += [f"{one.name} is {one.stat().st_size} bytes" for one in (wheel, sdist) if one.stat().st_size > LIMIT]
    return wrong


def _files(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


if __name__ == "__main__":
    archives = [Path(word) for word in sys.argv[1:]]
    complaints = look(*archives)
    print(
        *(complaints or [f"{one.name}: {one.stat().st_size / 1e6:.1f} MB, as it should be" for one in archives]),
        sep="\n",
    )
    sys.exit(bool(complaints))
