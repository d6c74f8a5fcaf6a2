# SPDX-License-Identifier: Apache-2.0
"""What CONTRIBUTING.md says of the house is so."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_floors_are_those_that_are_checked():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    floor = {name: number for number, line in enumerate(reversed(layers)) for name in re.findall(r"\w+", line)}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    house = text[text.index("From the ground up:") : text.index("One file is one idea.")]
    named = re.findall(r"`(\w+)`", house)
    assert sorted(named) == sorted(floor), "each room is named once"
    assert [floor[name] for name in named] == sorted(floor.values())


def test_rooms_and_files_that_are_named_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(
        r"`((?:losses|data|optim|eval|cli|methods|tests|src|configs|docs|benchmarks)/[\w/.]*)`", text
    ):
        if "x.py" in name or "x.md" in name or name.endswith("test_x.py"):
            continue
        assert any((ROOT / place / name).exists() for place in ("", "src/opendino")), name


NEW, BESIDE = "# new: ", re.compile(r"# (behind|before): (\S+): (.*)")
TRY = """
import sys
from pathlib import Path
from PIL import Image
import numpy as np, torch, zipfile
from opendino.cli.main import main
root, rng = Path(sys.argv[1]), np.random.default_rng(0)
for number in range(12):
    place = root / "pictures" / f"class{number % 2}" / f"{number}.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    pixels = (rng.integers(0, 60, (16, 16, 3)) + 190 * (number % 2)).astype(np.uint8)
    Image.fromarray(pixels).save(place)
with zipfile.ZipFile(root / "pictures.zip", "w") as archive:
    for path in sorted((root / "pictures").rglob("*.png")):
        archive.write(path, path.name)
assert main(["count", str(root / "pictures.zip")]) == 0
words = sys.argv[2:] + [f"data={root / 'pictures.zip'}", f"output_dir={root / 'run'}", "train.iterations=2"]
assert main(["pretrain", *words, "koleo.norm_weight=0.5"]) == 0
assert main(["eval", "separation", str(root / "run"), f"data={root / 'pictures'}"]) == 0
import json
steps = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
step = next(one for one in steps if any("norm" in key.split("/") for key in one))
print("norm", next(value for key, value in step.items() if key.split("/")[-1] == "norm"))
import importlib.util
specification = importlib.util.spec_from_file_location("made", root / "tests/unit/losses/test_norm.py")
made = importlib.util.module_from_spec(specification)
specification.loader.exec_module(made)
for name in [name for name in vars(made) if name.startswith("test_")]:
    getattr(made, name)()
"""


def test_each_addition_of_the_page_works_when_it_is_made(tmp_path, tiny_settings):
    """In a copy of the package, by the page's own words: a loss, a protocol, an input, a verb."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    page = (ROOT / "docs/how-to/extend.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(# .*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 13
    for block in blocks:
        head, _, text = block.partition("\n")
        if head.startswith(NEW):
            place = tmp_path / head.removeprefix(NEW)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
            continue
        side, name, line = BESIDE.fullmatch(head).groups()
        lines = (tmp_path / name).read_text(encoding="utf-8").splitlines()
        assert lines.count(line) == 1, f"{name} has not one line '{line}'"
        spot = lines.index(line) + (side == "behind")
        (tmp_path / name).write_text(
            "\n".join([*lines[:spot], *text.splitlines(), *lines[spot:], ""]), encoding="utf-8"
        )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRY, str(tmp_path), *tiny_settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "pictures.zip: 12 images" in done.stdout
    assert float(re.search(r"^norm ([\d.e+-]+)$", done.stdout, re.MULTILINE)[1]) > 0
    figures = dict(re.findall(r"\| (within|between) +\| +([-\d.]+)", done.stdout))
    assert float(figures["within"]) > float(figures["between"])
