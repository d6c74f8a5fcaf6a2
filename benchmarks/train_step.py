# SPDX-License-Identifier: Apache-2.0
"""Where the time of a training step goes: images per second, peak memory, and seconds of each phase.

    python benchmarks/train_step.py student.preset=vits14 train.batch_size=32 --steps 10
    python benchmarks/train_step.py configs/pretrain/vit_tiny_cifar10.yaml data=cifar10-train.parquet --json
    python benchmarks/train_step.py --quick

Without data= one batch of noise is used again and again, and nothing is waited for; phases are processor time then,
where one thread of a CPU works, and wall time anywhere else. `--json` writes the figures, with the machine's name, the
commit and the command, into benchmarks/results/. `--quick`: the phases of ViT-S/14 on two images and 4,096 prototypes,
then fast ways over plain ones (`step_cpu.py`). `--whole` times steps as a run takes them too, where nothing waits
between phases. The last line is a JSON object of the figures, with these ratios.
"""

import argparse
import itertools
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from opendino import distributed
from opendino.config import load
from opendino.data.collate import PretrainBatch
from opendino.data.masking import batch_masks
from opendino.data.normalization import normalization
from opendino.data.samplers import keyed_rng
from opendino.methods.dinov2 import DINOv2
from opendino.optim.clipping import clip_gradients
from opendino.optim.param_groups import set_schedule
from opendino.train import run_folder
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.facts import look_at_machine
from opendino.train.loop import Run, step_ahead, train_step
from opendino.train.pretrain import _lay_out, build_feed, build_run, keep_memory, open_images
from opendino.train.state import seed_step

PHASES = ("data", "teacher", "student", "losses", "backward", "clip", "optimizer", "ema")
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(Path(__file__).parent))  # for the scripts beside this one
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}


class Clock:
    """Seconds of each phase of each step; waits for the device at every border, so phases do not overlap."""

    def __init__(self, device, now: Callable[[], float] = time.perf_counter):
        self.device, self.now, self.seconds = device, now, {phase: [] for phase in PHASES}

    def __call__(self, phase: str, work: Callable):
        """Do a piece of work and count its seconds to a phase."""
        start = self.now()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[phase].append(self.now() - start)
        return result


def step(run: Run, batches: Iterator[PretrainBatch], clock: Clock) -> None:
    """`loop.train_step`, phase by phase."""
    batch = clock("data", lambda: next(batches))
    seed_step(run.seed, run.step)
    run.method.begin_step(run.step)
    now = run.schedules.at(run.step)
    set_schedule(run.optimizer, now["lr"], now["weight_decay"], now["last_layer_lr"])
    run.optimizer.zero_grad(set_to_none=True)
    run.layout.begin_step()
    method = cast("DINOv2", run.method)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
        targets = clock("teacher", lambda: method.targets(batch, now["teacher_temp"]))
        views = clock("student", lambda: method.student_views(batch))
        output = clock("losses", lambda: method.loss(views, targets, batch))
    clock("backward", output.loss.backward)
    run.layout.reduce(method.student)  # nothing to wait for with one process
    clock("clip", lambda: clip_gradients(method.subnetworks(), run.clip_grad))
    clock("optimizer", run.optimizer.step)
    clock("ema", lambda: method.update_teacher(now["momentum"]))
    run.step += 1


def whole_steps(run: Run, batches: Iterator[PretrainBatch], steps: int) -> float:
    """Seconds of a step as `loop.train` takes them: on a GPU its figures are read behind the next one."""
    waiting = None
    begun = time.perf_counter()
    for _ in range(steps):
        if not run.ahead:
            train_step(run, next(batches))
            continue
        before, waiting = waiting, step_ahead(run, next(batches))
        if before is not None:
            before.record()
    if waiting is not None:
        waiting.record()
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / steps


def noise(config: PretrainConfig, device: torch.device) -> Iterator[PretrainBatch]:
    """One batch of noise without end, with eight draws of masks by turns."""
    shape = config.student.arguments()
    channels, patch = shape.get("in_chans", 3), shape.get("patch_size", 16)
    normalization(channels, config.crops.mean, config.crops.std)
    rows, crops = config.train.batch_size, config.crops
    side = crops.global_size // patch
    pictures = (
        torch.randn(2 * rows, channels, crops.global_size, crops.global_size, device=device),
        torch.randn(crops.local_number * rows, channels, crops.local_size, crops.local_size, device=device),
    )
    batches = []
    for draw in range(8):
        masks = batch_masks(2 * rows, (side, side), config.masks, keyed_rng(0, "masks", draw))
        lists = (masks.masks, masks.indices, masks.weights)
        batch = PretrainBatch(*pictures, *lists, images=rows, ids=torch.arange(rows))
        padded = batch.pad(2 * rows, config.masks) if config.masks.pads(device.type) else batch
        batches.append(padded.to(device))
    yield from itertools.cycle(batches)


def cpu_name() -> str:
    """Model of the processor, as far as the system tells."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()} (CPU)"


def work_of(config: PretrainConfig) -> float:
    """Floating-point operations of an image and step."""
    from plan import Head, step_flops  # pyrefly: ignore[missing-import]  beside this file

    shape, crops = config.student.arguments(), config.crops
    sides = (crops.global_size, crops.local_size)
    own = [config.dino, *([config.ibot] if config.ibot.separate_head else [])]
    heads = [Head(one.prototypes, one.bottleneck_dim, one.hidden_dim, one.nlayers) for one in own]
    fixed = config.parallel.compile and config.parallel.compile_mode != "default"
    whole = fixed or not config.dino.needed_tokens
    drop = shape.get("drop_path_rate", 0.0)
    return step_flops(shape, heads, drop, sides, crops.local_number, all_tokens=whole)


def bf16_peak(device: str) -> float | None:
    """TFLOP/s in bfloat16 that the maker states for a device, without sparsity; None for one that is not listed."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def measure(config: PretrainConfig, steps: int, warmup: int, whole: bool = False) -> dict:
    keep_memory(config)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    if config.data:
        dataset = open_images(config)
        config = fill_in(config, len(dataset))
        run = build_run(config)
        batches = build_feed(config, dataset, run.device, 0)
    else:
        config = fill_in(config, 10**9)
        run = build_run(config)
        batches = noise(config, run.device)
    _lay_out(config, run)
    for _ in range(warmup):
        step(run, batches, Clock(run.device))
    alone = run.device.type == "cpu" and torch.get_num_threads() == 1 and not config.data
    clock = Clock(run.device, time.process_time if alone else time.perf_counter)
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = time.process_time()
    for _ in range(steps):
        step(run, batches, clock)
    busy = (time.process_time() - begun) / steps
    phases = {phase: statistics.median(seconds) for phase, seconds in clock.seconds.items()}
    seconds = statistics.median(sum(parts) for parts in zip(*clock.seconds.values(), strict=True))
    on_gpu = run.device.type == "cuda"
    work = work_of(config)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "img_per_s": config.train.batch_size / seconds,
        "seconds": seconds,
        # On a busy machine wall time says little; this is what the step costs (without the loader's workers).
        "cpu_seconds": busy,
        "phases": phases,
        "peak_memory_bytes": peak,
        "gflop_per_image": work / 1e9,
        "tflops": work * config.train.batch_size / seconds / 1e12,
        "parameters": sum(p.numel() for p in run.method.student.parameters()),
        "device": torch.cuda.get_device_name() if on_gpu else cpu_name(),
        "threads": torch.get_num_threads(),
        "steps": steps,
        **({"whole_seconds": whole_steps(run, batches, steps)} if whole else {}),
    }


def ratios() -> dict[str, float]:
    """Fast ways of a step over plain ones, of a cell that `step_cpu.py --quick` leaves out."""
    from step_cpu import measure as compare  # pyrefly: ignore[missing-import]  beside this file, and made of it

    torch.set_num_threads(1)
    return {"4096 bf16": round(compare(4096, "bf16", 2, 1, quick=True, one_by_one=False)["ratio"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="a recipe and key=value settings, as for opendino pretrain")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="ViT-S/14 on two images, under a minute on a CPU")
    parser.add_argument("--whole", action="store_true", help="also steps as a run takes them")
    parser.add_argument("--json", nargs="?", const="", help="write benchmarks/results/NAME.json")
    arguments = parser.parse_intermixed_args()
    recipe = next((word for word in arguments.words if "=" not in word), None)
    words = [word for word in arguments.words if "=" in word]
    if arguments.quick:
        words = ["student.preset=vits14", "dino.prototypes=4096", "train.batch_size=2", "train.threads=1", *words]
        arguments.steps, arguments.warmup = 2, 1
    machine = look_at_machine()
    defaults = {"train.batch_size": 32, "loader.workers": machine.cores // 2}
    config = load(PretrainConfig, recipe, words, defaults)
    with distributed.joined(alone=config.parallel.mode == "fsdp"):
        figures = measure(replace(config, output_dir=""), arguments.steps, arguments.warmup, arguments.whole)
    rate, seconds = figures["img_per_s"], figures["seconds"]
    crops, model = config.crops, config.student.preset or "a network of these settings"
    print(
        f"{model}, 2 x {crops.global_size} + {crops.local_number} x {crops.local_size} pixels, "
        f"{config.dino.prototypes:,} prototypes, {config.train.batch_size} images a step"
    )
    print(f"{rate:.1f} img/s, {seconds * 1000:.0f} ms a step of {config.train.batch_size} images")
    print(f"{config.train.batch_size / figures['cpu_seconds']:.1f} img per second of CPU time")
    print(f"{figures['peak_memory_bytes'] / 2**30:.2f} GiB at most on {figures['device']}, {config.train.precision}")
    peak = bf16_peak(figures["device"])
    share = f", {100 * figures['tflops'] / peak:.0f} % of the {peak:.0f} that its maker states (MFU)" if peak else ""
    print(f"{figures['tflops']:.3g} TFLOP/s at {figures['gflop_per_image']:.0f} GFLOP an image{share}")
    for phase, part in figures["phases"].items():
        print(f"  {phase.ljust(10)} {part * 1000:9.1f} ms  {100 * part / seconds:5.1f} %")
    if "whole_seconds" in figures:
        once, found = figures["whole_seconds"], config.train.batch_size / figures["whole_seconds"]
        rate = figures["tflops"] * seconds / once
        share = f", {100 * rate / peak:.0f} % of the maker's figure (MFU)" if peak else ""
        print(f"as a run takes them: {found:.1f} img/s, {once * 1000:.0f} ms a step, {rate:.3g} TFLOP/s{share}")
    compared = {"ratios": ratios()} if arguments.quick else {}
    for cell, over in compared.get("ratios", {}).items():
        print(f"{cell.replace(' ', ' prototypes, ')}: fast ways {over:.2f} times as fast as the plain step")
    print(json.dumps(compared | {"batch_size": config.train.batch_size} | figures))
    if arguments.json is not None:
        name = arguments.json or f"train_step_{config.student.preset}_{config.train.precision}"
        record = {
            "command": " ".join(sys.argv),
            "machine": platform.node(),
            "commit": run_folder.commit(),
            "versions": run_folder.versions(),
            **figures,
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
