# SPDX-License-Identifier: Apache-2.0
"""Every benchmark in turn: what each found, on which machine and of which commit, into the tables of the documents.

    python benchmarks/all.py --quick          each in its short form; fails if one fails, is slow, or says no JSON
    python benchmarks/all.py                  each as docs/performance.md and docs/results.md have it; hours
    python benchmarks/all.py --only startup head_loss "eval_small {run} --data {data} --table cifar10" --run RUN

The short form: about a minute of processor time at most, and a last line that is a JSON object. The long form keeps
what was printed, and the JSON object whole, in benchmarks/results/measured/; after each part it writes docs/measured.md
anew from all that is kept there, and the tables between markers (`tables.py`). What cannot be made here keeps its rows,
and the line below that names the machine they came from. RUN is a run for the scripts that measure a trained backbone
(`pretrain vit_nano_cifar10_cpu`), DATA the folder of photographs and tables that OPENDINO_TEST_DATA names or
../shared/data, PEERS a Python with torchvision, timm and lightly-train (OPENDINO_PEERS), without which their columns
are empty, STEREO a folder with the stereo pair of scikit-image (`eval_stereo.py`). What needs one that is not there is
left out and said.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from tables import KEPT, kept, refresh_all, title  # pyrefly: ignore[missing-import]  beside this file

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "measured.md"
SECONDS = 120
"""Of processor time that a short form may take: a minute of a core that is alone, twice that on a busy machine; time of
the clock says more of who else is at work."""

PARTS = ("all", "tables", "torchvision_recipe", "lightly_step", "fuzz_inputs")
"""Scripts that others run, and those that measure nothing."""

BY_PEERS = ("forward",)
"""Scripts that the Python with the peers runs, where there is one: peers take turns with us in one process."""

SHORT = {
    "attention": "--repeats 1",
    "curate_search": "join rows=5000",
    "hf_face": "",
    "parity": "vits14",
    "curate_truth": "{data}/photos.parquet images=60",
    "eval_small": "{run} --data {data} --table cifar10 --row pixels --held-out 200",
}
"""Words of the short form of scripts that have no --quick; their last line need not be JSON."""

LONG = (
    "train_step student.preset=vits14 dino.prototypes=8192 train.batch_size=4 train.precision=bf16 --steps 3",
    "train_step configs/pretrain/vit_tiny_cifar10.yaml train.batch_size=16 --steps 3",
    "train_step configs/pretrain/vit_nano_cifar10_cpu.yaml --steps 6",
    "step_cpu --batch 2 --rounds 5 --peer {peers}",
    "step_cpu --batch 8 --rounds 3 --together --only bf16 --peer {peers}",
    "cost",
    "plan",
    "attention --repeats 5",
    "loader --quick --peer {peers}",
    "loader",
    "embed",
    "embed --models B/14 --precisions int8 bf16 --images 8 --rounds 1",
    "forward --budget 2 --only S",
    "forward --budget 2 --only B",
    "forward --threads 2 --budget 2 --only S",
    "forward --threads 2 --budget 2 --only B",
    "forward --memory --only S",
    "forward --memory --only B",
    "startup --quick",
    "head_loss --quick",
    "exports --quick",
    "serve_load",
    "hf_face",
    "parity",
    "search --quick",
    "search",
    "curate_search join rows=200000",
    "curate_search search rows=200000 queries=4096",
    "curate_search kmeans rows=200000 k=1000",
    "curate_search approximate rows=50000",
    "curate_truth {data}/photos.parquet",
    "curate_truth {data}/tinyimagenet100-train.parquet tail=1",
    *(
        f"eval_small {{run}} --data {{data}} --table {table} --row {row}"
        for table in ("cifar10", "tinyimagenet100", "camvid")
        for row in ("pixels", "untrained", "trained")
    ),
    *(
        f"eval_stereo {{run}} --pictures {{stereo}} --row {row} --split {split}"
        for row in ("untrained", "trained")
        for split in ("views", "tiles")
    ),
    "cheaper {run} {data}/cifar10-train.parquet {data}/cifar10-test.parquet --merge 0.07 0.13 0.19 0.25",
    "cheaper --quick --merge 0.04 0.08",
    "fuzz",
    "drills --ranks 4",
)
"""In the order of docs/measured.md."""


def main() -> int:
    """Run what was asked for; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", help="beginnings of what is listed in LONG, or names of scripts")
    parser.add_argument("--run", help="a trained run")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("OPENDINO_TEST_DATA", ROOT.parent / "shared/data"))
    )
    parser.add_argument("--peers", default=os.environ.get("OPENDINO_PEERS", ""), help="a Python with the peers")
    parser.add_argument("--stereo", default="", help="a folder with motorcycle_left.png and its like")
    asked = parser.parse_args()
    failed = []
    for line in short_forms() if asked.quick else LONG:
        name, _, words = line.partition(" ")
        if asked.only and not any(line == one or line.startswith(f"{one} ") for one in asked.only):
            continue
        lacking = missing(words, asked)
        complaint = f"left out: {lacking}" if lacking else attempt(name, words, asked)
        print(f"{name:16} {words[:70]:70} {complaint}", flush=True)
        failed += [name] if complaint.startswith("FAILED") else []
    if not asked.quick:
        write()
    print(json.dumps({"failed": failed}))
    return int(bool(failed))


def short_forms() -> list[str]:
    """Name and words of the short form of every script."""
    scripts = [path for path in sorted((ROOT / "benchmarks").glob("*.py")) if path.stem not in PARTS]
    return [f"{path.stem} {'--quick' if _has_quick(path) else SHORT.get(path.stem, '--help')}" for path in scripts]


def _has_quick(path: Path) -> bool:
    return '"--quick"' in path.read_text(encoding="utf-8")


def missing(words: str, asked: argparse.Namespace) -> str:
    """What a command needs and does not find; empty where all is there."""
    if "{run}" in words and not asked.run:
        return "a trained run; --run RUN"
    if "{stereo}" in words and not asked.stereo:
        return "the stereo pair of scikit-image; --stereo FOLDER"
    return f"no folder {asked.data.name}; --data DATA" if "{data}" in words and not asked.data.is_dir() else ""


def attempt(name: str, words: str, asked: argparse.Namespace) -> str:
    """Run one command; what is wrong with it, or how long it took."""
    text = words if asked.peers else words.replace(" --peer {peers}", "")
    given = shlex.split(text.format(run=asked.run, data=asked.data, peers=asked.peers, stereo=asked.stereo))
    before, began, load = _processor(), time.monotonic(), os.getloadavg()[0]
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    python = sys.executable
    if asked.peers and name in BY_PEERS and not asked.quick:
        python, environment["PYTHONPATH"] = asked.peers, str(ROOT / "src")
    command = [python, str(ROOT / "benchmarks" / f"{name}.py"), *given]
    commit = _commit()  # before: others may commit while it runs
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    seconds, used = time.monotonic() - began, _processor() - before
    took = f"{seconds:.0f} s, {used:.0f} s of processor time"
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-40:]), file=sys.stderr, flush=True)
        return f"FAILED with {done.returncode} after {took}"
    if asked.quick:
        if used > SECONDS:
            return f"FAILED: {took}, above {SECONDS}"
        return took if "--quick" not in words or last_object(done.stdout) else f"FAILED: last line is no JSON; {took}"
    how = {"python": "python" if python == sys.executable else "PEERS", "ran": public(text)}
    how |= {"seconds": round(seconds, 1), "load": round(load, 1), "commit": commit}
    keep(name, words, done.stdout, how | machine(python))
    write()
    return took


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def last_object(printed: str) -> dict[str, Any] | None:
    """The JSON object of the last line; None where it is none."""
    try:
        found = json.loads(printed.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if isinstance(found, dict) else None


def _commit() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def keep(name: str, words: str, printed: str, how: dict[str, Any]) -> None:
    """Write down what a command printed, with how, where and of which commit."""
    shown = public(words)
    record = {
        "script": name,
        "words": shown,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **how,
        "printed": [line for line in printed.splitlines() if not line.startswith("{")],
        "figures": last_object(printed),
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    stem = "".join(one if one.isalnum() else "_" for one in f"{name} {shown}".strip())[:120]
    (KEPT / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def public(words: str) -> str:
    """A command with names in place of what is only here."""
    return words.format(run="RUN", data="DATA", peers="PEERS", stereo="STEREO")


def machine(python: str) -> dict[str, str]:
    """Processor and cores of this machine, and the torch of a Python."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    look = "import torch; print(torch.__version__); print(torch.cuda.is_available() and torch.cuda.get_device_name())"
    told = subprocess.run([python, "-c", look], capture_output=True, text=True, check=True).stdout.splitlines()
    device = f", {told[1]}" if told[1] != "False" else ""
    processor = names[0] if names else platform.machine()
    return {"machine": f"{processor}, {os.cpu_count()} logical cores{device}", "torch": told[0]}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def write() -> None:
    """The raw record and the tables, from all that is kept."""
    PAGE.write_text(page(), encoding="utf-8")
    refresh_all(ROOT)


def page() -> str:
    """docs/measured.md: every long form, with what it last printed or that it has not run."""
    by_command, lines = kept(KEPT), [HEAD]
    for line in LONG:
        name, _, words = line.partition(" ")
        words = public(words)
        lines.append(f"\n## {name}{': ' + words if words else ''}\n")
        one = by_command.get(f"{name} {words}".strip())
        if one is None:
            lines.append(f"`python benchmarks/{f'{name}.py {words}'.strip()}`: not run by `make bench` yet.")
            continue
        took = f" It took {one['seconds']:.0f} s." if one["seconds"] else ""  # unknown of what was copied by hand
        lines += [f"{title(one)}{took}", "", "```text", *one["printed"], "```"]
    return "\n".join(lines) + "\n"


HEAD = """# What the benchmarks printed

The raw record behind [performance](performance.md), [results](results.md) and [scaling](scaling.md): `make bench` runs
every script, keeps what it prints, and writes this page and their tables from it. A part that was not made on this
machine says which one it is from. RUN, DATA, PEERS and STEREO are what `python benchmarks/all.py --help` says."""


if __name__ == "__main__":
    sys.exit(main())
