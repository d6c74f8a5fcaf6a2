# SPDX-License-Identifier: Apache-2.0
"""The head's last layer and its cross-entropy, forward and backward: logits all at once against blocks of prototypes.

    python benchmarks/head_loss.py --quick
    python benchmarks/head_loss.py --rows 512 --threads 2

Rows of unit vectors of 256 channels, teacher probabilities of one row each; float32 and bfloat16 autocast. Seconds are
medians of both ways in turn in one process, processor time for one thread; memory is what the resident set grows by at
most, of each way in a process of its own, the targets not counted. The last line is a JSON object: peak memory and
seconds of the plain way over ours, and all rows.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from opendino.layers.dino_head import Prototypes
from opendino.losses._chunked import LastLayer, Wanted, chunked_cross_entropy
from opendino.losses._cross_entropy import cross_entropy

RESULTS = Path(__file__).parent / "results"
TEMP = 0.1


def plain(x: Tensor, layer: Prototypes, targets: Tensor) -> Tensor:
    return cross_entropy(layer(x), targets, TEMP)


def chunked(x: Tensor, layer: Prototypes, targets: Tensor) -> Tensor:
    return chunked_cross_entropy(x, LastLayer(layer.weight_v, layer.weight_g), [Wanted(targets)], TEMP)


WAYS: dict[str, Callable[[Tensor, Prototypes, Tensor], Tensor]] = {"plain": plain, "chunked": chunked}


def inputs(rows: int, prototypes: int) -> tuple[Tensor, Prototypes, Tensor]:
    torch.manual_seed(0)
    x = F.normalize(torch.randn(rows, 256), dim=1).requires_grad_()
    targets = torch.randn(rows, prototypes).mul_(3).softmax(dim=1)
    return x, Prototypes(256, prototypes), targets


def step(way: str, given: tuple[Tensor, Prototypes, Tensor], bf16: bool) -> tuple[float, Tensor, Tensor]:
    """Seconds of one pass forward and backward, and the two gradients."""
    x, layer, targets = given
    x.grad = layer.weight_v.grad = layer.weight_g.grad = None
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = WAYS[way](x, layer, targets).mean()
    loss.backward()
    seconds = clock() - begun
    assert x.grad is not None
    assert layer.weight_v.grad is not None
    return seconds, x.grad, layer.weight_v.grad


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def print_peak(way: str, rows: int, prototypes: int, bf16: bool) -> None:
    step(way, inputs(rows, 512), bf16)
    given = inputs(rows, prototypes)
    ctypes.CDLL(None).malloc_trim(0)  # memory that was let go of before is not to be found again
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here
    before = status("VmRSS")
    step(way, given, bf16)
    print((status("VmHWM") - before) / 1024)


def peak_mib(*words: object) -> float:
    command = [sys.executable, __file__, "--peak-of", json.dumps(words)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def measure(rows: int, prototypes: int, bf16: bool, rounds: int) -> dict:
    given, seconds = inputs(rows, prototypes), {way: [] for way in WAYS}
    gradients = {}
    for _ in range(rounds + 1):
        for way in WAYS:
            taken, *gradients[way] = step(way, given, bf16)
            seconds[way].append(taken)
    apart = [
        float((a - b).abs().max() / b.abs().max())
        for a, b in zip(gradients["chunked"], gradients["plain"], strict=True)
    ]
    middle = {way: statistics.median(times[1:]) for way, times in seconds.items()}
    peak = {way: peak_mib(way, rows, prototypes, bf16) for way in WAYS}
    return {
        "rows": rows,
        "prototypes": prototypes,
        "dtype": "bf16" if bf16 else "fp32",
        "seconds": middle,
        "peak_mib": peak,
        "speed": middle["plain"] / middle["chunked"],
        "memory": peak["plain"] / peak["chunked"],
        "largest_gradient_difference": max(apart),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds in place of five")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/head_loss.json")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print_peak(*json.loads(arguments.peak_of))
        return
    print(f"{'K':>7} {'':4} {'all at once':>14} {'in blocks':>14}   faster  smaller  gradients apart")
    rows = []
    for prototypes in (65536, 131072):
        for bf16 in (False, True):
            rows.append(measure(arguments.rows, prototypes, bf16, 2 if arguments.quick else 5))
            row = rows[-1]
            ways = "".join(f" {row['seconds'][way]:5.2f} s {row['peak_mib'][way]:4.0f} MiB" for way in WAYS)
            print(
                f"{prototypes:7} {row['dtype']:4}{ways} {row['speed']:8.2f} {row['memory']:8.2f}"
                f"  {row['largest_gradient_difference']:.0e}",
                flush=True,
            )
    if arguments.json:
        RESULTS.mkdir(exist_ok=True)
        record = {"command": " ".join(sys.argv), "load": os.getloadavg()[0], "rows": rows}
        (RESULTS / "head_loss.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    names = [f"{row['prototypes']} {row['dtype']}" for row in rows]
    ratios = {n: {w: round(row[w], 2) for w in ("speed", "memory")} for n, row in zip(names, rows, strict=True)}
    print(json.dumps({"ratios": ratios, "rows": rows}))


if __name__ == "__main__":
    main()
