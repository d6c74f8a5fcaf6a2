# SPDX-License-Identifier: Apache-2.0
"""Kill training, embedding and curation at random moments, start them again, and compare with runs that were not.

python benchmarks/drills.py [--quick] [--kills 40 30 30] [--ranks 0] [--seed 0] [--json FILE]

Each work is small and runs in a process group of its own, which gets `kill -9` at a moment drawn evenly from the time
that the work takes; the same command goes on in the same folder until it comes to its end, and then anew in another
folder, until there were as many kills as asked for. What it leaves must be that of the run that was not killed, to the
last byte: checkpoints, weights, metrics but for times; every file of embedding and curation. `--ranks 5` adds five
kills of a training on two ranks of torchrun. `--quick` kills each 3 times.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

TIMED = ("img_per_s", "data_wait", "looking_seconds", "looking_share")
TRAIN = """
student.preset=vit_nano4 student.depth=2 student.embed_dim=32 student.num_heads=2 student.drop_path_rate=0.2
student.init_values=0.1 crops.global_size=16 crops.local_size=8 crops.local_number=2 dino.centering=centering
dino.prototypes=32 dino.hidden_dim=32 dino.bottleneck_dim=16 train.batch_size=8 train.iterations=24 train.device=cpu
train.threads=1 train.precision=fp32 loader.workers=1 checkpoint.every=3 log.every=1 log.trackers=[] log.picture=false
knn.every=8
"""
CURATE = """
embed.model=thumbnail index.rows=5 dedup.threshold=0.95 cluster.levels=[10,3] cluster.steps=3 cluster.resample=[3,2]
cluster.kmeans.device=cpu cluster.kmeans.iterations=6 cluster.kmeans.save_every=2 search.device=cpu balance.size=20
"""
_LATE = 600.0  # seconds


class Work(NamedTuple):
    """Something to be killed.

    Attributes:
        name: for the table.
        command: of a folder: what runs there, in a process of its own.
        outputs: of a folder: name to content of what has to be the same.
    """

    name: str
    command: Callable[[Path], None]
    outputs: Callable[[Path], dict[str, Any]]


class Outcome(NamedTuple):
    """What came of the kills of one work.

    Attributes:
        kills: that met the work alive.
        starts: of the command.
        ends: runs that came to their end, each after its kills.
        failures: what went wrong: an end by anything but the kill, or outputs that differ.
        seconds: of the run without kills.
    """

    kills: int
    starts: int
    ends: int
    failures: list[str]
    seconds: float


def quietly(work: Callable[[Path], None], folder: Path, log: Path) -> None:
    """Body of a process: a process group of its own, and a file for what it says."""
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    work(folder)


def kill(process: int) -> None:
    """End a process and all of its group, which it makes when it has just begun."""
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(process, signal.SIGKILL)


def drill(work: Work, kills: int, home: Path, dice: random.Random) -> Outcome:
    """Kill a work again and again."""
    # Imports are done once, in the process that the others are forked from, so that every kill falls into the work.
    context = multiprocessing.get_context("forkserver")
    log, failures = home / "log.txt", []

    def start(folder: Path) -> Any:
        process = context.Process(target=quietly, args=(work.command, folder, log))
        process.start()
        return process

    first = context.Process(target=time.sleep, args=(0,))  # waits for the imports
    first.start()
    first.join()
    begun, process = time.monotonic(), start(home / "whole")
    process.join(_LATE)
    seconds, wanted = time.monotonic() - begun, work.outputs(home / "whole")
    if process.exitcode != 0:
        return Outcome(0, 1, 0, [f"without a kill: exit status {process.exitcode}, see {log}"], seconds)
    met, starts, ends = 0, 0, 0
    while True:
        folder = home / f"killed_{ends}"
        process, starts = start(folder), starts + 1
        if met < kills:
            process.join(dice.uniform(0, seconds))
            if process.is_alive():
                kill(process.pid)
        process.join(_LATE)
        if process.exitcode == -signal.SIGKILL:
            met += 1
            continue
        ends += 1
        if process.exitcode != 0:
            failures.append(f"{folder.name}: exit status {process.exitcode}, see {log}")
            break
        failures += different(work.outputs(folder), wanted, folder.name)
        if met >= kills:
            break
    return Outcome(met, starts, ends, failures, seconds)


def different(found: dict[str, Any], wanted: dict[str, Any], name: str) -> list[str]:
    """Outputs that are missing, left over or other."""
    odd = sorted(found.keys() ^ wanted.keys()) + [
        key for key in found.keys() & wanted.keys() if found[key] != wanted[key]
    ]
    return [f"{name}: {key} differs" for key in odd]


def pictures(folder: Path) -> Path:
    """Sixty small pictures of four kinds, in a folder each."""
    rng = np.random.default_rng(0)
    for number in range(60):
        home = folder / f"kind{number % 4}"
        home.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 255, (6, 6, 3)) // 2 + 30 * (number % 4)
        picture = Image.fromarray(small.astype(np.uint8)).resize((40, 40), Image.Resampling.BICUBIC)
        picture.save(home / f"{number:02d}.png")
    return folder


class Training:
    """`opendino pretrain`."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def words(self, folder: Path) -> list[str]:
        """Of the command."""
        return ["pretrain", f"data={self.data}", f"output_dir={folder}", *TRAIN.split()]

    def __call__(self, folder: Path) -> None:
        """Run it."""
        from opendino.cli.main import main

        sys.exit(main(self.words(folder)))


class Embedding:
    """`opendino embed`."""

    def __init__(self, data: Path, model: Path) -> None:
        self.data, self.model = data, model

    def __call__(self, folder: Path) -> None:
        """Run it."""
        from opendino.embed import EmbedConfig, embed

        embed(str(self.model), str(self.data), folder, EmbedConfig(rows=2, size=16, device="cpu", threads=1))


class Curation:
    """`opendino curate`."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def __call__(self, folder: Path) -> None:
        """Run it."""
        from opendino.config import load
        from opendino.curate import pipeline

        pipeline.run(
            load(pipeline.CurateConfig, None, [f"out={folder}", f"index.sources=[{self.data}]", *CURATE.split()])
        )


def of_training(folder: Path) -> dict[str, Any]:
    """Metrics but for times, checkpoints, weights."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    records = [{key: value for key, value in line.items() if key not in TIMED} for line in lines]
    files = [*folder.glob("checkpoints/**/*.safetensors"), folder / "weights" / "model.safetensors"]
    return {"metrics.jsonl": records} | {str(path.relative_to(folder)): path.read_bytes() for path in files}


def of_files(folder: Path) -> dict[str, Any]:
    """Every file but reports, which show times; hidden ones that a kill left must have gone."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".html"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def works(home: Path) -> list[Work]:
    """The three, made ready."""
    import torch

    from opendino.checkpoint.weights import save_weights
    from opendino.models.vision_transformer import VisionTransformer

    data = pictures(home / "pictures")
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=1)
    model = save_weights(backbone, home / "model")
    return [
        Work("train", Training(data), of_training),
        Work("embed", Embedding(data, model), of_files),
        Work("curate", Curation(data), of_files),
    ]


def ranks(work: Work, kills: int, home: Path, dice: random.Random) -> Outcome:
    """Kill a training on two ranks, launcher and all, and compare with the same without kills."""
    assert isinstance(work.command, Training)
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "opendino",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [*launcher, *work.command.words(folder)]  # pyrefly: ignore[missing-attribute]
        with (home / "log.txt").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)

    begun = time.monotonic()
    if start(home / "whole").wait(_LATE):
        return Outcome(0, 1, 0, [f"without a kill: see {home / 'log.txt'}"], 0.0)
    seconds, wanted = time.monotonic() - begun, work.outputs(home / "whole")
    met, starts, ends, failures = 0, 0, 0, []
    while True:
        folder = home / f"killed_{ends}"
        process, starts = start(folder), starts + 1
        if met < kills:
            time.sleep(dice.uniform(0.3, 0.9) * seconds)  # what is before is the start of Python and torch
            if process.poll() is None:
                for one in family(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one, signal.SIGKILL)
                process.wait()
                met += 1
                continue
        code, ends = process.wait(_LATE), ends + 1
        failures += [f"exit status {code}"] if code else different(work.outputs(folder), wanted, folder.name)
        if code or met >= kills:
            return Outcome(met, starts, ends, failures, seconds)


def family(process: int) -> list[int]:
    """A process and all that it began, the eldest first: torchrun gives each rank a session of its own."""
    found = [process]
    for one in found:
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in path.read_text().split()]
    return found


def main() -> None:
    """Drill, print a table; exit status 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kills", type=int, nargs=3, default=(40, 30, 30), metavar=("TRAIN", "EMBED", "CURATE"))
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["opendino.train.pretrain", "opendino.embed.folder", "opendino.curate.pipeline"])
    kills: Sequence[int] = (3, 3, 3) if words.quick else words.kills
    found: dict[str, Outcome] = {}
    print("| work | kills | starts | runs to their end | differing | seconds without a kill |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        ready = works(home)
        todo = [(work.name, work, count, drill) for work, count in zip(ready, kills, strict=True)]
        todo += [("train, 2 ranks", ready[0], words.ranks, ranks)] * bool(words.ranks)
        for name, work, count, way in todo:
            (home / name).mkdir()
            one = found[name] = way(work, count, home / name, random.Random(f"{words.seed} {name}"))
            print(f"| {name} | {one.kills} | {one.starts} | {one.ends} | {len(one.failures)} | {one.seconds:.1f} |")
            for failure in one.failures:
                print(f"    {failure}")
            if one.failures:
                print((home / name / "log.txt").read_text(encoding="utf-8")[-2000:])
            sys.stdout.flush()
    told = {name: one._asdict() for name, one in found.items()}
    if words.json:
        words.json.write_text(json.dumps({"seed": words.seed, "drills": told}, indent=1) + "\n")
    print(json.dumps({"failures": {name: len(one.failures) for name, one in found.items()}, "drills": told}))
    sys.exit(any(one.failures for one in found.values()))


if __name__ == "__main__":
    main()
