# SPDX-License-Identifier: Apache-2.0
"""Features per second: `opendino.optimize`, our plain model, transformers and timm, in turn in one process.

    python benchmarks/forward.py --quick
    python benchmarks/forward.py --threads 2 --json forward_2_threads
    python benchmarks/forward.py --device cuda --json forward_h200

Random weights, noise for images, each peer as its users run it: `model.to(dtype)` and its default attention; a peer
that does not import is left out. Every round runs all in turn; a ratio is the median over rounds of the time of the
best peer over ours: processor time for one thread, wall time for more. Beside each stands the rate of a packed
product of the same type in that minute, and which share of it our model and the best peer reach with all that they
do: one over the peer's share is the most that anything could gain on this processor. `--memory` prints peak memory
instead: what the resident set grows by in a call, each way in processes of its own, which give back what they free; the
mean of two. `--device cuda` takes S to g at 224 and 518 pixels, and the clock of the wall, waiting for the device.
`--quick` leaves our plain model out where a peer is there, and looks once where a look takes long. The last line is a
JSON object: the ratios, and all rows.
"""

import argparse
import copy
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import opendino
from opendino.fast.optimize import optimize
from opendino.layers.packed_linear import PackedLinear

sys.path.insert(0, str(Path(__file__).parent))
from plan import forward_flops  # pyrefly: ignore[missing-import]  beside this file
from train_step import cpu_name  # pyrefly: ignore[missing-import]  beside this file

RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "S": ("vits14", 384, 12, 6, "vit_small_patch14_dinov2"),
    "B": ("vitb14", 768, 12, 12, "vit_base_patch14_dinov2"),
    "L": ("vitl14", 1024, 24, 16, "vit_large_patch14_dinov2"),
    "g": ("vitg14", 1536, 40, 24, "vit_giant_patch14_dinov2"),
}
ON_GPU = tuple((size, side, batch, "bf16") for size in SHAPES for side, batch in ((224, 64), (518, 16)))
CELLS = tuple(
    (size, side, batch, dtype)
    for size, side, batches in (("S", 224, (1, 8, 32)), ("B", 224, (1, 8, 32)), ("S", 518, (1, 4)), ("B", 518, (1,)))
    for batch in batches
    for dtype in ("fp32", "bf16")
)
QUICK = tuple(
    (size, side, batch, dtype)
    for size, side, batch in (("S", 224, 1), ("S", 224, 8), ("B", 224, 1), ("S", 518, 1))
    for dtype in ("fp32", "bf16")
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAYS = ("optimized", "plain", "transformers", "timm")


@lru_cache(4)
def build(way: str, size: str) -> Any | None:
    """A model in evaluation mode, drawn once; None where its library does not import."""
    preset, width, depth, heads, timm_name = SHAPES[size]
    try:
        if way == "transformers":
            from transformers import Dinov2Config, Dinov2Model

            shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
            return Dinov2Model(Dinov2Config(**shape, image_size=518, use_swiglu_ffn=size == "g")).eval()
        if way == "timm":
            import timm  # pyrefly: ignore[missing-import]

            return timm.create_model(timm_name, dynamic_img_size=True).eval()
    except (ImportError, RuntimeError):
        return None
    return opendino.create(preset).eval()


def prepare(way: str, size: str, side: int, dtype: Any, device: str = "cpu") -> Callable[[Tensor], object] | None:
    """How one way makes tokens of images."""
    model = build("plain" if way == "optimized" else way, size)
    if model is None:
        return None
    model = copy.deepcopy(model).to(device)
    if way == "optimized":
        return optimize(model, dtype, side).forward_features
    model = model.to(DTYPES[dtype])
    call = model if way == "transformers" else model.forward_features
    return lambda images: call(images.to(DTYPES[dtype]))


def seconds(call: Callable[[Tensor], object], images: Tensor) -> float:
    on_gpu = images.device.type == "cuda"
    clock = time.process_time if torch.get_num_threads() == 1 and not on_gpu else time.perf_counter
    if on_gpu:
        torch.cuda.synchronize()
    begun = clock()
    call(images)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - begun


@torch.inference_mode()
def measure(
    cell: tuple[str, int, int, str], budget: float, device: str = "cpu", least: int = 2, wanted: Sequence[str] = WAYS
) -> dict:
    """Median seconds of every way, and the ratio of the best peer to ours round by round."""
    size, side, batch, dtype = cell
    images = torch.randn(batch, 3, side, side, device=device)
    calls = {way: prepare(way, size, side, dtype, device) for way in wanted}
    calls = {way: call for way, call in calls.items() if call is not None}
    rounds: list[dict[str, float]] = []
    for call in calls.values():
        seconds(call, images)
    begun = time.perf_counter()
    while len(rounds) < least or (time.perf_counter() - begun < budget and len(rounds) < 40):
        rounds.append({way: seconds(call, images) for way, call in calls.items()})
    medians = {way: statistics.median(one[way] for one in rounds) for way in calls}
    peers = [way for way in ("transformers", "timm") if way in calls]
    best = min(peers, key=medians.__getitem__) if peers else "plain"
    return {
        "cell": f"{size} {side} b{batch} {dtype}",
        "img_per_s": {way: batch / one for way, one in medians.items()},
        "best_peer": best,
        "ratio": statistics.median(one[best] / one["optimized"] for one in rounds),
        **(
            {"ratio_to_plain": statistics.median(one["plain"] / one["optimized"] for one in rounds)}
            if "plain" in calls
            else {}
        ),
        "rounds": len(rounds),
    }


def product_rate(dtype: str, device: str) -> float:
    """GFLOP/s of a product now: a packed one on a CPU, a large one on a GPU."""
    rows, deep, wide = (1024, 384, 1536) if device == "cpu" else (8192, 8192, 8192)
    weight = torch.randn(wide, deep, device=device)
    layer = PackedLinear(weight, None, DTYPES[dtype], packed=device == "cpu")
    x = torch.randn(rows, deep, device=device).to(DTYPES[dtype])
    with torch.inference_mode():
        best = min(seconds(layer, x) for _ in range(8))
    return 2 * rows * deep * wide / best / 1e9


def shares(row: dict[str, Any], cell: tuple[str, int, int, str], device: str) -> dict[str, float]:
    """Of the rate of such a product: what our model and the best peer reach, from the work of an image."""
    rate = product_rate(cell[3], device)
    work = forward_flops(SHAPES[cell[0]][0], cell[1]) / 1e9
    ways = {"share": "optimized", "share_of_peer": row["best_peer"]}
    return {"gflops": round(rate)} | {name: row["img_per_s"][way] * work / rate for name, way in ways.items()}


def peaks_mib(cell: tuple[str, int, int, str]) -> dict[str, list[float]]:
    """Growth of the resident set in one call of every way, in order of size; nothing where its library is missing.

    Each in a process of its own, two processes each, as many at a time as there are cores: time does not count. Glibc
    gives every large piece a mapping of its own there, and takes it back at once, so what is resident is what is used:
    left to itself it keeps what it likes, and the same call differs by half from one process to the next.
    """
    words = [sys.executable, __file__, "--peak-of"]
    asked = {way: [[*words, json.dumps([way, *cell])]] * 2 for way in WAYS}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        told = {way: [pool.submit(_answer, one) for one in commands] for way, commands in asked.items()}
    found = {way: [one.result() for one in answers] for way, answers in told.items()}
    return {way: sorted(one for one in peaks if one is not None) for way, peaks in found.items()}


def _answer(words: list[str]) -> float | None:
    fixed = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}  # its value of today, which then does not grow
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=fixed)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


@torch.inference_mode()
def print_peak(way: str, size: str, side: int, batch: int, dtype: str) -> None:
    call = prepare(way, size, side, dtype)
    if call is None:
        print("null")
        return
    images = torch.randn(batch, 3, side, side)
    call(images)  # what is made once for a shape
    ctypes.CDLL(None).malloc_trim(0)  # memory that was let go of before is not to be found again
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here
    before = _status("VmRSS")
    call(images)
    print((_status("VmHWM") - before) / 1024)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="eight cells, under a minute")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of each cell, at least two looks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="cells whose name has this in it")
    parser.add_argument("--memory", action="store_true", help="peak memory in place of time")
    parser.add_argument("--json", default="", help="write benchmarks/results/NAME.json")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.peak_of:
        print_peak(*json.loads(arguments.peak_of))
        return
    every = ON_GPU if arguments.device != "cpu" else QUICK if arguments.quick else CELLS
    cells = [cell for cell in every if arguments.only in name_of(cell)]
    rows: list[dict[str, Any]] = []
    if lacking():
        print(lacking(), flush=True)
    for cell in cells:
        if arguments.memory:
            peaks = peaks_mib(cell)
            middle = {way: statistics.median(of_way) if of_way else None for way, of_way in peaks.items()}
            rows.append({"cell": name_of(cell), "peak_mib": middle, "peaks_mib": peaks})
            there = [(way, one) for way, one in peaks.items() if one]
            told = (f"{way} {middle[way]:.1f} MiB ({one[0]:.1f} to {one[-1]:.1f})" for way, one in there)
            print(f"{name_of(cell):16} " + "  ".join(told), flush=True)
            continue
        row: dict[str, Any] = measure(
            cell,
            0.7 if arguments.quick else arguments.budget,
            arguments.device,
            1 if arguments.quick else 2,
            [way for way in WAYS if way != "plain"] if arguments.quick and has_peer(cell[0]) else WAYS,
        )
        row |= shares(row, cell, arguments.device)
        rows.append(row)
        rates = "  ".join(f"{way} {rate:7.2f}" for way, rate in row["img_per_s"].items())
        over = f"{row['ratio']:.2f} of {row['best_peer']}"
        print(
            f"{row['cell']:16} {rates}  ratio {over}  (packed product {row['gflops']} GFLOP/s; "
            f"{100 * row['share']:.0f} % of it reached, by {row['best_peer']} {100 * row['share_of_peer']:.0f} %)",
            flush=True,
        )
    record = {
        "command": " ".join(["python", "benchmarks/forward.py", *sys.argv[1:]]),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "processor": cpu_name() if arguments.device == "cpu" else torch.cuda.get_device_name(),
        "load": os.getloadavg()[0],
        "rows": rows,
    }
    if arguments.json:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{arguments.json}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    ratios = {row["cell"]: round(row["ratio"], 2) for row in rows if "ratio" in row}
    print(json.dumps({"ratios": ratios, "threads": arguments.threads, "rows": rows}))


def lacking() -> str:
    """Peers that this Python does not have, in a line; nothing where all are there."""
    absent = [way for way in ("transformers", "timm") if build(way, "S") is None]
    return (
        f"not here, so not compared with: {', '.join(absent)}; the ratio is to the best of the others" if absent else ""
    )


def has_peer(size: str) -> bool:
    return any(build(way, size) is not None for way in ("transformers", "timm"))


def name_of(cell: tuple[str, int, int, str]) -> str:
    size, side, batch, dtype = cell
    return f"{size} {side} b{batch} {dtype}"


if __name__ == "__main__":
    main()
