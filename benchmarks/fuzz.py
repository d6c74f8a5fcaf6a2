# SPDX-License-Identifier: Apache-2.0
"""Hand malformed inputs to everything that reads files or requests: each must end in one of our errors, soon.

python benchmarks/fuzz.py [--quick] [--count 10000] [--seed 0] [--only TARGET [--case N]] [--json FILE]

Settings, images, tables, tars, weights, run folders, heads and requests to the server, as `fuzz_inputs.py` makes them.
An input fails if its reader raises anything but an `OpendinoError` (a request: an answer of 500), ends the process, or
takes longer than `--seconds`; a target fails if its process grows past `--mib` or leaves files open. Every input
follows from its number alone: `--only image --case 123` shows one with its traceback. `--quick` is a twentieth of it.
"""

import argparse
import contextlib
import json
import logging
import math
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import torch
from fuzz_inputs import TARGETS  # pyrefly: ignore[missing-import]  beside this file

from opendino.errors import OpendinoError

_WARM = 100  # inputs after which a process has all that it needs


class Found(NamedTuple):
    """What came of one target.

    Attributes:
        inputs: that were tried.
        refused: of them, with one of our errors.
        failures: number of the input and what happened.
        seconds: the slowest took.
        slowest: its number.
        grown: MiB of resident memory from the hundredth input to the last.
        peak: MiB, largest resident memory.
        files: open at the end and not at the hundredth input.
    """

    inputs: int
    refused: int
    failures: list[tuple[int, str]]
    seconds: float
    slowest: int
    grown: float
    peak: float
    files: int


def status(process: int | str = "self") -> dict[str, float]:
    """Resident memory now and at its largest in MiB, and the number of open files."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith(" kB")}
    return {"rss": sizes["VmRSS"], "peak": sizes["VmHWM"], "files": len(list(Path(f"/proc/{process}/fd").iterdir()))}


def source(seed: int, name: str, number: int) -> random.Random:
    """The chance that one input is made from."""
    return random.Random(f"{seed} {name} {number}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of libraries, which come by the thousand here."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def work(name: str, seed: int, first: int, count: int, at: Any, note: Path) -> None:
    """Try the inputs of a target from `first` on; runs in a process of its own."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home, note.open("a", encoding="utf-8") as file, quiet():
        try:
            case = TARGETS[name][0](Path(home))
        except BaseException:
            at[0] = count  # nothing can be tried
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C libraries say of broken files
        at[0], at[1] = first, time.monotonic()
        before: dict[str, float] = {}
        for number in range(first, count):
            at[0], at[1] = number, time.monotonic()
            started, told, refused = time.perf_counter(), "", False
            try:
                case(source(seed, name, number))
            except OpendinoError as error:
                refused = True
                told = "" if str(error).strip() else f"{type(error).__name__} that says nothing"
            except BaseException as error:
                told = f"{type(error).__name__}: {str(error)[:300]}"
            record = {"number": number, "seconds": time.perf_counter() - started, "refused": refused, "told": told}
            file.write(json.dumps(record) + "\n")
            file.flush()
            if number - first == _WARM:
                before = status()
        now = status()
        before = before or now
        grown = {"grown": now["rss"] - before["rss"], "peak": now["peak"], "files": now["files"] - before["files"]}
        file.write(json.dumps(grown) + "\n")
        file.flush()
    os._exit(0)


def hunt(name: str, count: int, seed: int, seconds: float, mib: float) -> Found:
    """All inputs of a target; a process that ends, hangs or grows is replaced by another that goes on behind."""
    context = multiprocessing.get_context("fork")
    failures: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory() as home:
        note, first = Path(home) / "note.jsonl", 0
        note.touch()
        while first < count:
            at = context.Array("d", [first, math.inf])  # set-up does not count
            process = context.Process(target=work, args=(name, seed, first, count, at, note))
            process.start()
            ended = _watched(process, at, seconds, mib)
            number = int(at[0])
            first = count if ended is None else number + 1
            failures += [] if ended is None else [(number, ended)]
        records = [json.loads(line) for line in note.read_text(encoding="utf-8").splitlines()]
    tried = [record for record in records if "number" in record]
    failures += [(record["number"], record["told"]) for record in tried if record["told"]]
    slowest: dict[str, Any] = max(tried, key=lambda record: record["seconds"], default={"seconds": 0.0, "number": 0})
    ends = [record for record in records if "grown" in record] or [{"grown": 0.0, "peak": 0.0, "files": 0}]
    return Found(
        inputs=count,
        refused=sum(record["refused"] for record in tried),
        failures=sorted(failures),
        seconds=slowest["seconds"],
        slowest=slowest["number"],
        grown=max(end["grown"] for end in ends),
        peak=max(end["peak"] for end in ends),
        files=max(int(end["files"]) for end in ends),
    )


def _watched(process: Any, at: Any, seconds: float, mib: float) -> str | None:
    """How a process came to an end that is none of ours; None where it did all."""
    while process.is_alive():
        process.join(0.2)
        late = time.monotonic() - at[1] > seconds
        with contextlib.suppress(OSError, KeyError):
            if late or status(process.pid)["rss"] > mib:
                process.kill()
                process.join()
                return f"took longer than {seconds:g} s" if late else f"took more than {mib:g} MiB"
    return None if process.exitcode == 0 else f"ended the process (exit status {process.exitcode})"


def show(name: str, number: int, seed: int) -> None:
    """One input, in this process, with what it raises."""
    with tempfile.TemporaryDirectory() as home:
        case = TARGETS[name][0](Path(home))
        started = time.perf_counter()
        try:
            case(source(seed, name, number))
            print("taken")
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        print(f"{time.perf_counter() - started:.3f} s, {status()['peak']:.0f} MiB at most")
        sys.stdout.flush()
        os._exit(0)


def main() -> None:
    """Run all targets and print a table; exit status 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--mib", type=float, default=4096.0)
    parser.add_argument("--only", choices=list(TARGETS))
    parser.add_argument("--case", type=int)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    if words.only and words.case is not None:
        show(words.only, words.case, words.seed)
    whole = (words.count // 20 if words.quick else words.count) / sum(share for _, share in TARGETS.values())
    print("| target | inputs | refused | failures | slowest s (input) | grown MiB | peak MiB | files left open |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    failed, results = False, {}
    for name in [words.only] if words.only else TARGETS:
        found = hunt(name, round(TARGETS[name][1] * whole), words.seed, words.seconds, words.mib)
        results[name] = found._asdict()
        print(
            f"| {name} | {found.inputs} | {found.refused} | {len(found.failures)} | "
            f"{found.seconds:.2f} ({found.slowest}) | {found.grown:.0f} | {found.peak:.0f} | {found.files} |",
            flush=True,
        )
        kinds = Counter(told for _, told in found.failures)
        for told, times in kinds.most_common():
            number = next(number for number, one in found.failures if one == told)
            print(f"    {times} x {told} (case {number})", flush=True)
        failed |= bool(found.failures) or found.files > 0
    if words.json:
        words.json.write_text(json.dumps({"seed": words.seed, "targets": results}, indent=1) + "\n")
    print(json.dumps({"failures": {name: len(one["failures"]) for name, one in results.items()}, "targets": results}))
    sys.exit(failed)


if __name__ == "__main__":
    main()
