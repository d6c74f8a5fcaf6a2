# SPDX-License-Identifier: Apache-2.0
"""A whole training step on a CPU with our fast ways against the plain eager step, in turn.

    python benchmarks/step_cpu.py --quick
    python benchmarks/step_cpu.py --batch 4 --rounds 5 --json
    python benchmarks/step_cpu.py --quick --peer PYTHON_WITH_LIGHTLY_TRAIN

ViT-S/14, 2 x 224 + 8 x 98 pixels of noise, drop path 0.3, Sinkhorn-Knopp, KoLeo, masks; 4,096 and 65,536 prototypes,
float32 and bfloat16 autocast. Plain is none of `WAYS`: `nn.Linear`, torch's fused attention, all tokens in the last
block, all logits at once, AdamW as torch chooses by itself, the teacher moved parameter by parameter, Sinkhorn-Knopp
that rewrites its matrix; where the library has no switch, the plain way stands here. Fast is all of them. "Built" is
plain with bfloat16 attended to as a layer does by itself, written out (not with --quick). Each is a worker, a process
of its own, for kept memory is a whole process's. The ratio is the median over rounds, processor time for one thread,
after eight steps of each that do not count (two with --quick); who begins changes from round to round. Then the fast
step takes turns with itself without one way each (not with --quick or --together). With `--peer`, a step of
lightly-train takes its turn in each round (`lightly_step.py`). Beside the seconds: how much the resident set grows at
most, and which share of the rate of a packed product in that minute the work of a step reaches. The last line is a JSON
object: ratios, and all rows.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from opendino.config import load
from opendino.layers import dino_head
from opendino.layers.attention import use_attention
from opendino.layers.fast_linear import FastLinear, use_fast_linears
from opendino.losses import _chunked
from opendino.memory import keep_freed_memory
from opendino.methods import dinov2, method
from opendino.optim.clipping import clip_gradients
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.pretrain import build_run

sys.path.insert(0, str(Path(__file__).parent))
from forward import product_rate  # pyrefly: ignore[missing-import]  beside this file
from head_loss import status  # pyrefly: ignore[missing-import]  beside this file
from train_step import noise, work_of  # pyrefly: ignore[missing-import]  beside this file

RESULTS = Path(__file__).parent / "results"
WARM, WARM_QUICK = 8, 2
"""First steps, in which what is made once is made and memory that is kept grows, with each of eight draws of masks."""

QUICK = ((4096, "fp32"), (65536, "bf16"))

WAYS = ("linears", "attention", "blocks", "adamw", "ema", "sinkhorn", "needed", "memory")
"""What fast has and plain has not; the last is a worker's from its start to its end."""


def ways_of(prototypes: int, dtype: str) -> tuple[str, ...]:
    """Those that do anything for a type and a number of prototypes."""
    idle = {"linears"} if dtype == "bf16" else {"attention"}
    return tuple(way for way in WAYS if way not in idle and (way != "blocks" or prototypes >= dinov2.IN_BLOCKS_FROM))


@torch.no_grad()
def plain_sinkhorn(logits: Tensor, temp: float, real: Tensor | None = None, *, iterations: int = 3) -> Tensor:
    """As published: the whole matrix is scaled again and again; without padding."""
    if real is not None:
        raise SystemExit("step_cpu: masked patches are not filled up on a CPU")
    q = torch.exp(logits.float() / temp).t()
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(dim=1, keepdim=True)
        q /= q.shape[0]
        q /= q.sum(dim=0, keepdim=True)
        q /= q.shape[1]
    return (q * q.shape[1]).t()


@torch.no_grad()
def plain_ema(teacher: nn.Module, student: nn.Module, momentum: float, counts: Tensor | None = None) -> None:
    """One parameter after the other; every step counts on a CPU."""
    del counts
    for mine, other in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.mul_(momentum).add_(other, alpha=1 - momentum)


def plain_product(a: Tensor, b: Tensor) -> Tensor:
    """Torch's own, which is MKL's in float32."""
    return a @ b.t()


PARTS = {
    "ema": [(method, "update_ema", plain_ema)],
    "sinkhorn": [(dinov2, "sinkhorn_knopp", plain_sinkhorn)],
    "linears": [(dino_head, "product", plain_product), (_chunked, "product", plain_product)],
}
"""Names of the library that a step has another function for where a way is left out."""


def settings(
    prototypes: int, dtype: str, batch: int, more: Sequence[str] = ("student.preset=vits14",)
) -> PretrainConfig:
    """Of a run that any of the ways can be taken in."""
    words = [
        *("student.drop_path_rate=0.3", "train.device=cpu", "dino.centering=sinkhorn_knopp"),
        *(f"dino.prototypes={prototypes}", f"train.batch_size={batch}", f"train.precision={dtype}"),
        *more,
    ]
    return fill_in(dataclasses.replace(load(PretrainConfig, None, words), output_dir=""), 10**9)


def build(prototypes: int, dtype: str, batch: int, **more: Sequence[str]) -> tuple[Any, PretrainConfig]:
    """A run and its settings."""
    config = settings(prototypes, dtype, batch, **more)
    return build_run(config), config


def take(run: Any, ways: Collection[str]) -> None:
    """Have a run take some ways, as far as they are switches of its parts."""
    if "linears" in ways:
        use_fast_linears(run.method)
    else:
        for layer in run.method.modules():
            if type(layer) is FastLinear:
                layer.__class__ = nn.Linear  # pyrefly: ignore[bad-argument-type]  what it was made of
    use_attention(run.method, "written" if "attention" in ways else "fused")
    dino = dataclasses.replace(run.method.config.dino, in_blocks="blocks" in ways, needed_tokens="needed" in ways)
    run.method.config = dataclasses.replace(run.method.config, dino=dino)
    for group in run.optimizer.param_groups:
        group["fused"], group["foreach"] = ("adamw" in ways) or None, None


def step(run: Any, batch: Any, number: int, ways: Collection[str] = WAYS) -> tuple[float, float]:
    """Seconds of one step, and its loss."""
    take(run, ways)
    torch.manual_seed(number)
    for group in run.optimizer.param_groups:
        group["lr"] = 1e-4
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    with contextlib.ExitStack() as plain:
        for way in PARTS.keys() - set(ways):
            for place in PARTS[way]:
                plain.enter_context(patch.object(*place))
        begun = clock()
        run.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16"):
            loss = run.method(batch, 0.07).loss
        loss.backward()
        clip_gradients(run.method.subnetworks(), run.clip_grad)
        run.optimizer.step()
        run.method.update_teacher(0.99)
        return clock() - begun, float(loss.detach())


class Worker:
    """Steps in another process, which ends with the block."""

    def __init__(self, python: str, script: str, cell: tuple[int, str, int], *more: str) -> None:
        self.words = [python, str(Path(__file__).with_name(script)), *map(str, cell), *more]
        self.words += ["--threads", str(torch.get_num_threads())]
        self.process = subprocess.Popen(self.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Worker":
        """The worker, ready."""
        if self._answer() != "ready":
            self.__exit__()
            raise SystemExit(f"step_cpu: this does not work: {' '.join(self.words)}")
        return self

    def __call__(self, number: int = 0, ways: Collection[str] = WAYS) -> list[float]:
        """Seconds of a step; where the worker is ours, its loss and the MiB of steps so far as well."""
        print(number, *ways, file=self.process.stdin, flush=True)
        return [float(word) for word in self._answer().split()]

    def _answer(self) -> str:
        return self.process.stdout.readline().strip() if self.process.stdout else ""

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()  # to its end


def work(prototypes: int, dtype: str, batch: int, ways: Collection[str]) -> None:
    """Be a worker: a step for each line of its number and its ways, of which memory holds all along.

    It answers with seconds, the loss, and the MiB that steps so far took at most over what there was before them.
    """
    if "memory" in ways:
        keep_freed_memory()
    torch.manual_seed(0)
    run, config = build(prototypes, dtype, batch)
    batches = list(islice(noise(config, torch.device("cpu")), 8))  # the same for all: other masks in each step
    idle = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here
    print("ready", flush=True)
    for line in sys.stdin:
        number, *taken = line.split()
        seconds, loss = step(run, batches[int(number) % len(batches)], int(number), taken)
        print(seconds, loss, (status("VmHWM") - idle) / 1024, flush=True)


def measure(
    prototypes: int, dtype: str, batch: int, rounds: int, peer_python: str = "", *, quick: bool, one_by_one: bool
) -> dict[str, Any]:
    cell = (prototypes, dtype, batch)
    alone, warm = ways_of(prototypes, dtype) if one_by_one else (), WARM_QUICK if quick else WARM
    ways: dict[str, Collection[str]] = {"fast": WAYS, "plain": ()}
    if dtype == "bf16" and not quick:
        ways["built"] = ("attention",)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses, peaks, rates = dict[str, float](), dict[str, float](), [product_rate(dtype, "cpu")]
    with contextlib.ExitStack() as ends:
        ours = {name: start(cell, taken, ends) for name, taken in ways.items()}
        peer = ends.enter_context(Worker(peer_python, "lightly_step.py", cell)) if peer_python else None
        for number in range(warm + rounds):
            turn = deque([*ours, *(["lightly"] if peer else [])])
            turn.rotate(number)  # each begins as often
            for name in turn:
                if peer and name == "lightly":
                    seconds.setdefault(name, []).append(peer()[0])
                    continue
                taken, losses[name], peaks[name] = ours[name](number, ways[name])
                seconds[name].append(taken)
        without = leave_out(ours["fast"], lambda ways: start(cell, ways, ends), alone, min(rounds, 4))
    seconds = {name: times[warm:] for name, times in seconds.items()}
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    rate = max(*rates, product_rate(dtype, "cpu"))  # another's work in one of the two moments is not the processor's
    done = batch * work_of(settings(*cell)) / 1e9
    row = {"prototypes": prototypes, "dtype": dtype, "seconds": middle, "gflops": round(rate)}
    row |= {"share": done / middle["fast"] / rate, "ratio": ratio(seconds["plain"], seconds["fast"])}
    if "built" in ways:
        row["built_over_fast"] = ratio(seconds["built"], seconds["fast"])
    if peer:
        row |= {f"lightly_over_{name}": ratio(seconds["lightly"], seconds[name]) for name in ways}
    return row | {"last_losses": losses, "peak_mib": peaks, "without": without}


def start(cell: tuple[int, str, int], ways: Collection[str], ends: contextlib.ExitStack) -> Worker:
    """A worker of ours that keeps its memory where that is among its ways."""
    return ends.enter_context(Worker(sys.executable, Path(__file__).name, cell, "--worker", *ways))


def leave_out(
    fast: Callable[..., list[float]], other: Callable[[Collection[str]], Callable], ways: Sequence[str], rounds: int
) -> dict[str, dict[str, float]]:
    """Seconds of a fast step without each of its ways, and their ratio to the two fast steps around each.

    What the fast worker cannot leave, another one is without; another way begins each round.
    """
    left = {way: set(WAYS) - {way} for way in ways}
    takers: dict[str, Callable[..., list[float]]] = dict.fromkeys(ways, fast)
    if "memory" in left:
        takers["memory"] = other(left["memory"])
        for number in range(WARM):
            takers["memory"](number, left["memory"])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    around: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds if ways else 0):
        first, whole = number % len(ways), fast(number)[0]
        for way in (*ways[first:], *ways[:first]):
            seconds[way].append(takers[way](number, left[way])[0])
            before, whole = whole, fast(number)[0]
            around[way].append((before + whole) / 2)
    return {
        way: {"seconds": statistics.median(seconds[way]), "ratio": ratio(seconds[way], around[way])} for way in ways
    }


def ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Median of the ratios within a round."""
    return statistics.median(one / two for one, two in zip(times, others, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", nargs="*", help="of a worker: prototypes, fp32 or bf16, images")
    parser.add_argument("--worker", nargs="*", help="be one, and which ways it takes")
    parser.add_argument("--quick", action="store_true", help="two cells, two images, one round")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--together", action="store_true", help="do not leave out one way at a time")
    parser.add_argument("--only", default="", help="cells whose name has this in it, such as '4096 fp32'")
    parser.add_argument("--peer", default="", help="a Python with lightly-train")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/step_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker is not None:
        prototypes, dtype, images = arguments.cell
        work(int(prototypes), dtype, int(images), arguments.worker)
        return
    batch, rounds = (2, 1) if arguments.quick else (arguments.batch, arguments.rounds)
    rows = []
    for prototypes in (4096, 65536):
        for dtype in ("fp32", "bf16"):
            if arguments.only not in f"{prototypes} {dtype}" or (arguments.quick and (prototypes, dtype) not in QUICK):
                continue
            one_by_one = not (arguments.quick or arguments.together)
            found = measure(
                prototypes, dtype, batch, rounds, arguments.peer, quick=arguments.quick, one_by_one=one_by_one
            )
            rows.append(found)
            row = rows[-1]
            ways = "  ".join(f"{way} {seconds:6.2f} s" for way, seconds in row["seconds"].items())
            reached = f"{100 * row['share']:.0f} % of {row['gflops']} GFLOP/s"
            losses = "  ".join(f"{way} {loss:.5f}" for way, loss in row["last_losses"].items())
            told = f"{prototypes:6} {dtype}  {ways}  ratio {row['ratio']:.2f}  {reached}  losses: {losses}"
            print(told, flush=True)
            for way, found in row["without"].items():
                print(f"       without {way:9} {found['seconds']:6.2f} s  {found['ratio']:.2f} of a fast step")
    if arguments.json:
        RESULTS.mkdir(exist_ok=True)
        record = {"command": " ".join(sys.argv), "batch": batch, "load": os.getloadavg()[0], "rows": rows}
        (RESULTS / "step_cpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    ratios = {f"{row['prototypes']} {row['dtype']}": round(row["ratio"], 2) for row in rows}
    print(json.dumps({"ratios": ratios, "batch": batch, "rows": rows}))


if __name__ == "__main__":
    main()
