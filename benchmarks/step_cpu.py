# SPDX-License-Identifier: Apache-2.0
"""A whole training step on a CPU with our fast ways against the same step without them, in turn in one process.

    python benchmarks/step_cpu.py --quick
    python benchmarks/step_cpu.py --batch 4 --rounds 5 --json
    python benchmarks/step_cpu.py --quick --peer PYTHON_WITH_LIGHTLY_TRAIN

ViT-S/14, 2 x 224 + 8 x 98 pixels of noise, drop path 0.3, Sinkhorn-Knopp, KoLeo, masks; 4,096 and 65,536 prototypes,
float32 and bfloat16 autocast. Plain: `nn.Linear`, all logits at once. Fast: `FastLinear` (float32 alone) and blocks of
prototypes (from 16,384 on). The ratio is the median over rounds, processor time for one thread, after a step on crops
of 112 and 56 pixels that makes what is made once. With `--peer`, a step of lightly-train takes its turn in each round
(`lightly_step.py`). Beside the seconds: which share of the rate of a packed product in that minute the work of a step
reaches. The last line is a JSON object: ratios, and all rows.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from opendino.config import load
from opendino.optim.clipping import clip_gradients
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.pretrain import build_run

sys.path.insert(0, str(Path(__file__).parent))
from forward import product_rate  # pyrefly: ignore[missing-import]  beside this file
from train_step import noise, work_of  # pyrefly: ignore[missing-import]  beside this file

RESULTS = Path(__file__).parent / "results"


def build(prototypes: int, dtype: str, batch: int) -> tuple[dict[str, Any], PretrainConfig]:
    """The same run twice, plain and fast, and its settings."""
    words = [
        "student.preset=vits14",
        "student.drop_path_rate=0.3",
        f"dino.prototypes={prototypes}",
        "dino.centering=sinkhorn_knopp",
        f"train.batch_size={batch}",
        f"train.precision={dtype}",
        "train.device=cpu",
    ]
    config = fill_in(dataclasses.replace(load(PretrainConfig, None, words), output_dir=""), 10**9)
    runs = {}
    for way in ("plain", "fast"):
        fast = way == "fast"
        dino, train = dataclasses.replace(config.dino, in_blocks=fast), dataclasses.replace(config.train, onednn=fast)
        runs[way] = build_run(dataclasses.replace(config, dino=dino, train=train))
    return runs, config


def step(run: Any, batch: Any, number: int) -> tuple[float, float]:
    """Seconds of one step, and its loss."""
    torch.manual_seed(number)
    for group in run.optimizer.param_groups:
        group["lr"] = 1e-4
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    run.optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16"):
        loss = run.method(batch, 0.07).loss
    loss.backward()
    clip_gradients(run.method.subnetworks(), run.clip_grad)
    run.optimizer.step()
    run.method.update_teacher(0.99)
    return clock() - begun, float(loss.detach())


class Peer:
    """lightly-train's step in another process."""

    def __init__(self, python: str, prototypes: int, dtype: str, batch: int) -> None:
        words = [python, str(Path(__file__).with_name("lightly_step.py")), str(prototypes), dtype, str(batch)]
        words += ["--threads", str(torch.get_num_threads())]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._answer() != "ready":
            raise SystemExit(f"step_cpu: {python} has no lightly-train that works")

    def __call__(self) -> float:
        """Seconds of a step."""
        print("step", file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        return self.process.stdout.readline().strip() if self.process.stdout else ""

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def measure(prototypes: int, dtype: str, batch: int, rounds: int, peer_python: str) -> dict[str, Any]:
    runs, config = build(prototypes, dtype, batch)
    images = next(noise(config, torch.device("cpu")))
    crops = dataclasses.replace(config.crops, global_size=112, local_size=56)
    small = next(noise(dataclasses.replace(config, crops=crops), torch.device("cpu")))
    peer = Peer(peer_python, prototypes, dtype, batch) if peer_python else None
    seconds: dict[str, list[float]] = {way: [] for way in (*runs, *(["lightly"] if peer else []))}
    losses: dict[str, float] = {}
    for run in runs.values():
        step(run, small, 0)
    if peer:
        peer()  # its first step makes what is made once too
    for number in range(1, rounds + 1):
        for way, run in runs.items():
            taken, losses[way] = step(run, images, number)
            seconds[way].append(taken)
        if peer:
            seconds["lightly"].append(peer())
    if peer:
        peer.close()

    def ratio(way: str, other: str) -> float:
        pairs = zip(seconds[way], seconds[other], strict=True)
        return statistics.median(one / two for one, two in pairs)

    rate, work = product_rate(dtype, "cpu"), batch * work_of(config) / 1e9
    middle = {way: statistics.median(times) for way, times in seconds.items()}
    return {
        "prototypes": prototypes,
        "dtype": dtype,
        "seconds": middle,
        "gflops": round(rate),
        "share": work / middle["fast"] / rate,
        "ratio": ratio("plain", "fast"),
        **(
            {"lightly_over_plain": ratio("lightly", "plain"), "lightly_over_fast": ratio("lightly", "fast")}
            if peer
            else {}
        ),
        "last_losses": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two images, one round")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="cells whose name has this in it, such as '4096 fp32'")
    parser.add_argument("--peer", default="", help="a Python with lightly-train")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/step_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    batch, rounds = (2, 1) if arguments.quick else (arguments.batch, arguments.rounds)
    rows = []
    for prototypes in (4096, 65536):
        for dtype in ("fp32", "bf16"):
            if arguments.only not in f"{prototypes} {dtype}":
                continue
            rows.append(measure(prototypes, dtype, batch, rounds, arguments.peer))
            row = rows[-1]
            ways = "  ".join(f"{way} {seconds:6.2f} s" for way, seconds in row["seconds"].items())
            reached = f"{100 * row['share']:.0f} % of {row['gflops']} GFLOP/s"
            losses = f"losses {row['last_losses']}"
            print(f"{prototypes:6} {dtype}  {ways}  ratio {row['ratio']:.2f}  {reached}  {losses}", flush=True)
    if arguments.json:
        RESULTS.mkdir(exist_ok=True)
        record = {"command": " ".join(sys.argv), "batch": batch, "load": os.getloadavg()[0], "rows": rows}
        (RESULTS / "step_cpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    ratios = {f"{row['prototypes']} {row['dtype']}": round(row["ratio"], 2) for row in rows}
    print(json.dumps({"ratios": ratios, "batch": batch, "rows": rows}))


if __name__ == "__main__":
    main()
