# SPDX-License-Identifier: Apache-2.0
"""Every benchmark in turn: what each printed, on which machine and of which commit, into docs/measured.md.

    python benchmarks/all.py --quick          each in its short form; fails if one fails, is slow, or says no JSON
    python benchmarks/all.py                  each as docs/performance.md and docs/results.md have it; hours
    python benchmarks/all.py --only startup head_loss --run RUN --data DATA

The short form: about a minute of processor time at most, and a last line that is a JSON object. The long form keeps
what was printed in benchmarks/results/measured/ and writes docs/measured.md from all that is kept there, so a table
that this machine cannot make stays, with the machine that it came from. RUN is a run for the scripts that measure a
trained backbone (`pretrain vit_nano_cifar10_cpu`), DATA the folder of photographs and tables that OPENDINO_TEST_DATA
names or ../shared/data; what needs one that is not there is left out and said.
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

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "results" / "measured"
PAGE = ROOT / "docs" / "measured.md"
SECONDS = 120
"""Of processor time that a short form may take: a minute of a core that is alone, twice that on a busy machine; time of
the clock says more of who else is at work."""

PARTS = ("all", "torchvision_recipe", "lightly_step", "fuzz_inputs")
"""Scripts that others run."""

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
    "train_step student.preset=vits14 dino.prototypes=8192 train.batch_size=4 train.precision=bf16 --steps 2",
    "train_step configs/pretrain/vit_tiny_cifar10.yaml train.batch_size=16 --steps 3",
    "train_step configs/pretrain/vit_nano_cifar10_cpu.yaml --steps 6",
    "step_cpu --quick",
    "cost",
    "plan",
    "attention --repeats 5",
    "loader --quick",
    "embed",
    "forward --quick",
    "forward --quick --memory",
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
    "cheaper {run} {data}/cifar10-train.parquet {data}/cifar10-test.parquet",
    "fuzz",
)
"""A table each."""


def main() -> int:
    """Run what was asked for; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", help="names of scripts")
    parser.add_argument("--run", help="a trained run")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("OPENDINO_TEST_DATA", ROOT.parent / "shared/data"))
    )
    asked = parser.parse_args()
    failed = []
    for line in short_forms() if asked.quick else LONG:
        name, _, words = line.partition(" ")
        if asked.only and name not in asked.only:
            continue
        lacking = missing(words, asked.run, asked.data)
        complaint = f"left out: {lacking}" if lacking else attempt(name, words, asked)
        print(f"{name:16} {words[:70]:70} {complaint}", flush=True)
        failed += [name] if complaint.startswith("FAILED") else []
    if not asked.quick:
        PAGE.write_text(page(), encoding="utf-8")
    print(json.dumps({"failed": failed}))
    return int(bool(failed))


def short_forms() -> list[str]:
    """Name and words of the short form of every script."""
    scripts = [path for path in sorted((ROOT / "benchmarks").glob("*.py")) if path.stem not in PARTS]
    return [f"{path.stem} {'--quick' if _has_quick(path) else SHORT.get(path.stem, '--help')}" for path in scripts]


def _has_quick(path: Path) -> bool:
    return '"--quick"' in path.read_text(encoding="utf-8")


def missing(words: str, run: str | None, data: Path) -> str:
    """What a command needs and does not find; empty where all is there."""
    if "{run}" in words and not run:
        return "a trained run; --run RUN"
    return f"no folder {data.name}; --data DATA" if "{data}" in words and not data.is_dir() else ""


def attempt(name: str, words: str, asked: argparse.Namespace) -> str:
    """Run one command; what is wrong with it, or how long it took."""
    given = shlex.split(words.format(run=asked.run, data=asked.data))
    before, began = _processor(), time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *given]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    seconds, used = time.monotonic() - began, _processor() - before
    took = f"{seconds:.0f} s, {used:.0f} s of processor time"
    if done.returncode:
        return f"FAILED with {done.returncode} after {took}"
    if asked.quick:
        if used > SECONDS:
            return f"FAILED: {took}, above {SECONDS}"
        return took if "--quick" not in words or _is_object(done.stdout) else f"FAILED: last line is no JSON; {took}"
    keep(name, words, done.stdout, seconds)
    return took


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _is_object(printed: str) -> bool:
    try:
        return isinstance(json.loads(printed.strip().splitlines()[-1]), dict)
    except (ValueError, IndexError):
        return False


def keep(name: str, words: str, printed: str, seconds: float) -> None:
    """Write down what a command printed, with where and of which commit."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    figures = {
        "script": name,
        "words": words.format(run="RUN", data="DATA"),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "seconds": round(seconds, 1),
        "printed": [line for line in printed.splitlines() if not line.startswith("{")],
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    stem = "".join(one if one.isalnum() else "_" for one in f"{name} {figures['words']}".strip())[:120]
    (KEPT / f"{stem}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def machine() -> str:
    """Processor, cores and torch of this machine, in a line."""
    import torch

    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    processor = names[0] if names else platform.machine()
    return f"{processor}, {os.cpu_count()} logical cores{device}, torch {torch.__version__}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def page() -> str:
    """docs/measured.md: every long form, with what it last printed or that it has not run."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]
    by_command = {f"{one['script']} {one['words']}".strip(): one for one in found}
    lines = [HEAD]
    for line in LONG:
        command = line.format(run="RUN", data="DATA")
        name, _, words = command.partition(" ")
        title, script = (f"{name}: {words}", f"{name}.py {words}") if words else (name, f"{name}.py")
        lines.append(f"\n## {title}\n\n`python benchmarks/{script}`\n")
        one = by_command.get(command)
        if one is None:
            lines.append("Not run by `make bench` yet; figures of earlier runs by hand: [performance](performance.md).")
            continue
        lines.append(f"{one['machine']}; {one['date']}, commit {one['commit']}, {one['seconds']:.0f} s.\n")
        lines += ["```text", *one["printed"], "```"]
    return "\n".join(lines) + "\n"


HEAD = """# What the benchmarks printed

Written by `make bench`, which runs every script behind [performance](performance.md) and [results](results.md) and
keeps what it prints; a part that this machine could not make says which machine it is from."""


if __name__ == "__main__":
    sys.exit(main())
