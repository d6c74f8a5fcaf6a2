# SPDX-License-Identifier: Apache-2.0
"""What a training step costs as the work grows: images, tokens, prototypes, processes.

    python benchmarks/cost.py --quick
    python benchmarks/cost.py --curve prototypes
    python benchmarks/cost.py --json cost_vits14 student.preset=vits14 train.batch_size=2

Each curve changes one number of the same step and keeps the others; processor seconds of a whole step (loss, gradients,
clipping, AdamW, averaged teacher) on noise, the median of a few. Beside a curve stands the power that fits it best, 1
for a cost in proportion, and seconds for each unit between its two largest points, which what is constant does not
change. The curve of processes keeps the images of each and counts the wall time of a step: flat is ideal where there
are as many cores as processes. The last line is a JSON object: the powers, and all points.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from opendino import distributed
from opendino.config import load
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.loop import train_step
from opendino.train.pretrain import _lay_out, build_run

sys.path.insert(0, str(Path(__file__).parent))
from train_step import cpu_name, noise  # pyrefly: ignore[missing-import]  beside this file

RESULTS = Path(__file__).parent / "results"
SMALL = ["student.preset=vit_nano4", "student.patch_size=8", "crops.global_size=64", "crops.local_size=32"]
PUBLISHED = ["student.preset=vits14", "dino.centering=sinkhorn_knopp", "student.drop_path_rate=0.3"]
CURVES = {
    "images": ("train.batch_size", (2, 4, 8), (8, 16, 32)),
    "tokens": ("crops.global_size", (98, 168, 224, 308), (64, 96, 128)),
    "prototypes": ("dino.prototypes", (4096, 16384, 65536), (4096, 16384, 65536)),
    "processes": ("", (1, 2), (1, 2)),
}
"""Setting that grows, its values, and those of --quick."""


def seconds(words: list[str], steps: int, clock: Callable[[], float]) -> float:
    """Median of a few steps, after one that is not counted."""
    config = fill_in(replace(load(PretrainConfig, None, words), output_dir=""), 10**9)
    run = build_run(config)
    _lay_out(config, run)
    batches, times = noise(config, run.device), []
    for _ in range(steps + 1):
        batch = next(batches)
        begun = clock()
        train_step(run, batch)
        times.append(clock() - begun)
    return statistics.median(times[1:])


def of_processes(count: int, words: list[str], steps: int) -> float:
    """Wall seconds of a step of several processes, each with as many images."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", __file__, "--one-of", str(steps), *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"cost: {count} processes ended with {answer.returncode}: {answer.stderr[-2000:]}")
    return float(answer.stdout.strip().splitlines()[-1])


def work(name: str, value: int, words: list[str]) -> float:
    """What a point counts: the value itself, or for sizes the tokens of an image's views."""
    if name != "tokens":
        return value
    config = load(PretrainConfig, None, words)
    patch = config.student.arguments()["patch_size"]
    crops = config.crops
    return 2 * (1 + (value // patch) ** 2) + crops.local_number * (1 + (crops.local_size // patch) ** 2)


def curve(name: str, words: list[str], quick: bool) -> dict[str, Any]:
    """Points of a curve, the power that fits them, and what one more costs at the end."""
    setting, values, short = CURVES[name]
    steps = 2 if quick else 3
    points = []
    for value in short if quick else values:
        if name == "processes":
            found = of_processes(value, words, steps)
        else:
            found = seconds([*words, f"{setting}={value}"], steps, time.process_time)
        points.append((work(name, value, words), found))
        print(f"{name:10}  {setting or 'processes'} = {value:<8}{found:9.3f} s", flush=True)
    (x0, y0), (x1, y1) = points[-2:]
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean = [statistics.mean(column) for column in zip(*logs, strict=True)]
    power = sum((x - mean[0]) * (y - mean[1]) for x, y in logs) / sum((x - mean[0]) ** 2 for x, _ in logs)
    print(f"{name:10}  power {power:.2f}, {(y1 - y0) / (x1 - x0):.3g} s for one more at the end")
    return {"name": name, "setting": setting, "points": points, "power": power, "each": (y1 - y0) / (x1 - x0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="key=value settings, as for opendino pretrain")
    parser.add_argument("--quick", action="store_true", help="a very small backbone, under a minute")
    parser.add_argument("--curve", choices=list(CURVES), help="this one alone")
    parser.add_argument("--json", default="", help="write benchmarks/results/NAME.json")
    parser.add_argument("--one-of", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    base = SMALL if asked.quick else PUBLISHED
    fixed = ["train.device=cpu", "train.precision=fp32", "dino.prototypes=4096", "train.batch_size=2"]
    words = asked.words if asked.one_of else [*base, *fixed, *asked.words]
    if asked.one_of:
        with distributed.joined():
            found = seconds(words, asked.one_of, time.perf_counter)
            if distributed.is_main():
                print(found)
        return
    names = [asked.curve] if asked.curve else list(CURVES)
    rows = [curve(name, words, asked.quick) for name in names]
    if asked.json:
        RESULTS.mkdir(exist_ok=True)
        record = {"command": " ".join(["python", "benchmarks/cost.py", *sys.argv[1:]]), "machine": cpu_name()}
        text = json.dumps(record | {"torch": torch.__version__, "rows": rows}, indent=1)
        (RESULTS / f"{asked.json}.json").write_text(text + "\n", encoding="utf-8")
    print(json.dumps({"powers": {row["name"]: round(row["power"], 2) for row in rows}, "rows": rows}))


if __name__ == "__main__":
    main()
