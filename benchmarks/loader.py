# SPDX-License-Identifier: Apache-2.0
"""How fast images become batches: ours by Pillow and by the fast decoder, and torchvision's, interleaved in one run.

python benchmarks/loader.py --quick [--peer PYTHON]     one core, each way; then a consumer the size of a GPU
python benchmarks/loader.py [--workers 0 1 2] [--batches 10] [--paths 1000000]     phases, workers, memory, paths

Photographs are those of 500 x 375 in `photos.parquet` of the folder that OPENDINO_TEST_DATA names (or ../shared/data),
as they are and saved again at quality 75; else made JPEGs. The peer runs in the Python that `--peer` or
OPENDINO_TORCHVISION names, as torchvision may not import beside this torch; see `torchvision_recipe.py`. The last line
is JSON.
"""

import argparse
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from opendino.data.augment import CropsConfig, MultiCrop
from opendino.data.collate import PretrainBatch, collate
from opendino.data.datasets import ImageDataset, open_dataset
from opendino.data.datasets._paths import PathTable
from opendino.data.fast import choose_decoder, fast_views, keep_to_one_thread
from opendino.data.loaders import LoaderConfig, PretrainLoader, pretrain_loader
from opendino.data.masking import MaskConfig, batch_masks
from opendino.data.samplers import keyed_rng
from opendino.machine import cores

ROOT = Path(__file__).parents[1]
OFF: dict[str, Any] = {"flip": 0.0, "jitter": 0.0, "gray": 0.0, "blur": "none", "solarize": 0.0}


def picture(height: int, width: int, seed: int) -> Image.Image:
    """A picture with the spectrum of a photograph, roughly: noise summed over octaves."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for octave in range(1, 7):
        side = 2**octave
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=float) / octave
    return Image.fromarray((total * 255 / total.max()).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """An image as a file."""
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def made(folder: Path, name: str, images: list[Image.Image], format: str) -> Path:
    """A Parquet file of made pictures."""
    cells = [encoded(image, format) for image in images]
    pq.write_table(pa.table({"image": cells}), folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def seconds(function, repeats: int = 3) -> float:
    """Least processor time of a call, after a first one."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def phases(dataset: ImageDataset, crops: CropsConfig, patch: int, count: int) -> dict[str, float]:
    """Milliseconds an image of processor time, one core."""
    count = min(count, len(dataset))
    images = [dataset.image(i) for i in range(count)]
    channels = dataset.options.channels

    def augment(config: CropsConfig, repeats: int) -> float:
        crop = MultiCrop(config, channels)
        return seconds(lambda: [crop(image, keyed_rng(0, "crops", i)) for i, image in enumerate(images)], repeats)

    views = [MultiCrop(crops, channels)(image, keyed_rng(0, "crops", i)) for i, image in enumerate(images)]
    side = crops.global_size // patch

    def put_together() -> None:
        masks = batch_masks(2 * count, (side, side), MaskConfig(), keyed_rng(0, "masks", 0))
        collate(views, masks, list(range(count)))

    configs = (replace(crops, **OFF), replace(crops, blur="none", solarize=0.0), crops)
    rounds = [[augment(config, 1) for config in configs] for _ in range(3)]  # in turn, as their differences count
    cut, with_colour, everything = (min(times) for times in zip(*rounds, strict=True))
    return {
        "decode": seconds(lambda: [dataset.image(i) for i in range(count)]) / count * 1e3,
        "crops": cut / count * 1e3,
        "jitter, grey": (with_colour - cut) / count * 1e3,
        "blur, solarize": (everything - with_colour) / count * 1e3,
        "masks, collate": seconds(put_together) / count * 1e3,
    }


def memory(process: str = "self") -> float:
    """Memory of a process in MB, shared pages counted in part."""
    path = Path(f"/proc/{process}/smaps_rollup")
    if not path.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("Pss:")) / 1024


def children() -> list[str]:
    """Ids of this process's children."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    return listed.read_text().split() if listed.exists() else []


def throughput(dataset: ImageDataset, crops: CropsConfig, patch: int, batch: int, workers: int, batches: int) -> dict:
    """Images a second of wall time, and MB of all processes."""
    loader = pretrain_loader(dataset, crops, MaskConfig(), patch, batch, workers=workers)
    warm = max(2 * workers, 1)  # what was prepared ahead while the workers were started
    for _ in range(warm):
        next(loader)
    started, held = time.perf_counter(), 0.0
    for _ in itertools.repeat(None, max(batches, 2 * workers)):
        next(loader)
        held = max(held, memory() + sum(memory(child) for child in children()))
    rate = batch * max(batches, 2 * workers) / (time.perf_counter() - started)
    loader.close()
    return {"workers": workers, "images_per_second": rate, "mb": held}


def index_of_paths(count: int) -> dict[str, float]:
    """A table of made paths, and a scan of real empty files."""
    started = time.perf_counter()
    table = PathTable.collect(b"n%08d/n%08d_%d.JPEG" % (i // 1000, i // 1000, i % 1000) for i in range(count))
    held = (table.text.nbytes + table.offsets.nbytes) / 2**20
    listed = time.perf_counter() - started
    print(f"\ntable of {count:,} paths: {listed:.2f} s, {held:.0f} MB, shared by all workers")
    with tempfile.TemporaryDirectory() as folder:
        files = count // 20
        for number in range(files):
            if number % 1000 == 0:
                (Path(folder) / f"n{number // 1000:08d}").mkdir()
            (Path(folder) / f"n{number // 1000:08d}" / f"{number}.JPEG").touch()
        started = time.perf_counter()
        found = len(open_dataset(folder))
        took = time.perf_counter() - started
    print(f"scan of {found:,} files in {files // 1000} folders: {took:.2f} s, {took / files * 1e6:.2f} s a million")
    return {"paths": count, "seconds": listed, "mb": held, "scan_seconds_a_million": took / files * 1e6}


def near(source: Path, out: Path, count: int, quality: int = 0) -> Path:
    """The first photographs of 500 x 375 in a file of their own, as they are or saved again."""
    cells = [cell["bytes"] if isinstance(cell, dict) else cell for cell in pq.read_table(source)["image"].to_pylist()]
    sizes = [Image.open(io.BytesIO(cell)).size for cell in cells]
    taken = [cell for cell, size in zip(cells, sizes, strict=True) if sorted(size) == [375, 500]][:count]
    if quality:
        taken = [encoded(Image.open(io.BytesIO(cell)).convert("RGB"), "JPEG", quality=quality) for cell in taken]
    pq.write_table(pa.table({"image": taken}), out)
    return out


class Peer:
    """torchvision's recipe in another process; None in place of seconds where it does not import."""

    def __init__(self, python: str, photos: Path) -> None:
        command = [python, str(Path(__file__).with_name("torchvision_recipe.py")), str(photos)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.there = self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def __call__(self, first: int, count: int) -> float | None:
        """Seconds of processor time for so many images."""
        if not self.there or self.process.stdin is None or self.process.stdout is None:
            return None
        print(first, count, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def ways(dataset: ImageDataset) -> dict[str, Callable[[int, int], object]]:
    """What makes a batch of images first .. first + count, by name."""
    mean_std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def batch(first: int, count: int, *, fast: bool, bare: bool = False) -> PretrainBatch:
        crops = MultiCrop(CropsConfig(), bare=bare)
        rows = range(first, first + count)
        if fast:
            views = [fast_views(dataset, i, crops, keyed_rng(0, "crops", i)) for i in rows]
        else:
            views = [crops(dataset.image(i), keyed_rng(0, "crops", i)) for i in rows]
        return collate(views, batch_masks(2 * count, (16, 16), MaskConfig(), keyed_rng(0, "masks", 0)), list(rows))

    return {
        "pillow": lambda first, count: batch(first, count, fast=False),
        "fast": lambda first, count: batch(first, count, fast=True),
        "fast, normalised here": lambda first, count: batch(first, count, fast=True).finish(*mean_std),
        "fast, colours elsewhere": lambda first, count: batch(first, count, fast=True, bare=True),
    }


def quick(sources: dict[str, Path], peer_python: str) -> None:
    """One core, then a consumer; the last line is JSON."""
    decoder, why = choose_decoder("auto")
    if decoder != "fast":
        raise SystemExit(f"loader: --quick compares the fast decoder: {why}; pip install '.[fast]'")
    keep_to_one_thread()
    told = {name: one_core(name, photos, peer_python) for name, photos in sources.items()}
    dataset = open_dataset(next(iter(sources.values())))
    rate = production(dataset)
    waits = [consumer(dataset, rate, *way) for way in (("never", 0.7), ("always", 0.7), ("always", 0.9))]
    print(f"\none worker makes {rate:.0f} images a second by the fast decoder; one that takes fewer waits:\n")
    print("| thread | taken, of what is made | images a second | share of the time that it waits |\n|---|---|---|---|")
    for one in waits:
        print(f"| {one['thread']} | {one['of']:.0%} | {one['taken']:.0f} | {one['waits']:.1%} |")
    ratios = {name: one["over_torchvision"] for name, one in told.items()}
    print(json.dumps({"ratios": ratios, "ways": told, "waits": waits}))


def one_core(name: str, photos: Path, peer_python: str, rounds: int = 7, count: int = 8) -> dict[str, Any]:
    """Every way in turn on the same images; medians over the rounds."""
    dataset, peer = open_dataset(photos), Peer(peer_python, photos)
    made, times = ways(dataset), {}
    for number in range(rounds + 1):
        first = number * count % max(len(dataset) - count, 1)
        for way, function in made.items():
            started = time.process_time()
            function(first, count)
            times.setdefault(way, []).append((time.process_time() - started) / count)
        took = peer(first, count)
        if took is not None:
            times.setdefault("torchvision", []).append(took / count)
    peer.close()
    middle = {way: float(np.median(values[1:])) for way, values in times.items()}
    size = np.mean([len(cast("bytes", dataset.read(i))) for i in range(len(dataset))]) / 1000
    print(f"\n{name}: {len(dataset)} JPEGs of 500 x 375, {size:.0f} kB each; 2 x 224 + 8 x 98, one core\n")
    if "torchvision" not in middle:
        print("torchvision does not import here, so nothing is compared with it; --peer names a Python where it does\n")
    print("| way | ms an image | images a second and core | times torchvision |\n|---|---|---|---|")
    base = middle.get("torchvision")
    ratios = {way: round(base / value, 2) for way, value in middle.items()} if base else {}
    for way, value in middle.items():
        print(f"| {way} | {value * 1e3:.2f} | {1 / value:.0f} | {ratios.get(way, '-')} |", flush=True)
    per_core = {way: round(1 / value, 1) for way, value in middle.items()}
    return {"kb": float(size), "images_per_second_per_core": per_core, "over_torchvision": ratios}


def feed(dataset: ImageDataset, thread: Any = "always", batch: int = 16) -> PretrainLoader:
    """One worker for each core but one, the fast decoder, and batches of 16 images."""
    config = LoaderConfig(decoder="fast", photometric="worker", prefetch=3, thread=thread)
    workers = max(cores() - 1, 1)
    return pretrain_loader(dataset, CropsConfig(), MaskConfig(), 14, batch, workers=workers, config=config)


def production(dataset: ImageDataset, runs: int = 5, steps: int = 6, batch: int = 16) -> float:
    """Images a second that the workers make for somebody who only takes: the median of some runs."""
    loader, rates = feed(dataset), []
    for _ in range(4 * max(cores() - 1, 1)):
        next(loader)
    for _ in range(runs):
        started = time.perf_counter()
        for _ in range(steps):
            next(loader)
        rates.append(steps * batch / (time.perf_counter() - started))
    loader.close()
    return float(np.median(rates))


def consumer(dataset: ImageDataset, rate: float, thread: Any, of: float, batch: int = 16) -> dict[str, Any]:
    """How long one waits who only sleeps, as a GPU would compute, and takes a share of what the workers can make.

    A step lasts as long as the GPU would compute; what the loader does in the consumer's own thread is part of it, and
    what it waits is not. The first steps do not count: before them nothing was made ahead, as there is in a long run.
    """
    loader, warm, steps, taken, waits = feed(dataset, thread), 8, 32, of * rate, []
    for _ in range(warm + steps):
        before, begun = loader.waited, time.perf_counter()
        next(loader)
        waits.append(loader.waited - before)
        time.sleep(max(begun + waits[-1] + batch / taken - time.perf_counter(), 0))
    loader.close()
    waited = sum(waits[warm:])
    return {
        "thread": thread,
        "of": of,
        "made": rate,
        "taken": taken,
        "waits": waited / (waited + steps * batch / taken),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--batches", type=int, default=6)
    arguments.add_argument("--images", type=int, default=40, help="images of the timing by phase")
    arguments.add_argument("--photos", type=Path, help="Parquet file of photographs")
    arguments.add_argument("--paths", type=int, default=1_000_000)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--peer", default=os.environ.get("OPENDINO_TORCHVISION", sys.executable))
    given = arguments.parse_args()
    torch.set_num_threads(1)
    folder = Path(os.environ.get("OPENDINO_TEST_DATA", ROOT.parent / "shared" / "data"))
    photos = given.photos or folder / "photos.parquet"
    with tempfile.TemporaryDirectory() as scratch:
        if given.quick:
            few = {"made": made(Path(scratch), "few", [picture(375, 500, i) for i in range(24)], "JPEG")}
            if photos.exists():
                few = {
                    "as they are": near(photos, Path(scratch) / "few.parquet", 56),
                    "quality 75": near(photos, Path(scratch) / "smaller.parquet", 56, quality=75),
                }
            else:
                print(
                    f"no photographs at {photos}: pictures made here stand in for them; --photos names a Parquet file"
                )
            quick(few, given.peer)
            return
        fixed = made(Path(scratch), "photos", [picture(375, 500, i) for i in range(given.images)], "JPEG")
        small = made(Path(scratch), "small", [picture(40, 40, i).convert("L") for i in range(1000)], "PNG")
        cases = [
            ("made JPEG 500 x 375, 2 x 224 + 8 x 98", fixed, 3, CropsConfig(), 14, 16),
            (
                "made grey PNG 40 x 40, 2 x 40 + 6 x 20",
                small,
                1,
                CropsConfig(40, local_size=20, local_number=6),
                10,
                64,
            ),
        ]
        if photos.exists():
            cases.insert(0, (f"{photos.name}, 2 x 224 + 8 x 98", photos, 3, CropsConfig(), 14, 16))
        found: list[dict[str, Any]] = []
        for title, source, channels, crops, patch, batch in cases:
            dataset = open_dataset(source, channels=channels)
            count = given.images if batch == 16 else 10 * given.images
            times = phases(dataset, crops, patch, count)
            print(
                f"\n## {title}\n\n| {' | '.join(times)} | total ms an image, one core |\n|{'---|' * (len(times) + 1)}"
            )
            print(f"| {' | '.join(f'{value:.3f}' for value in times.values())} | {sum(times.values()):.3f} |")
            print("\n| workers | images a second | MB, all processes |\n|---|---|---|")
            found.append({"images": title, "phases": times, "throughput": []})
            for workers in given.workers:
                one = throughput(dataset, crops, patch, batch, workers, given.batches)
                found[-1]["throughput"].append(one)
                print(f"| {workers} | {one['images_per_second']:,.0f} | {one['mb']:,.0f} |", flush=True)
    print(json.dumps({"cases": found, "listing": index_of_paths(given.paths)}))


if __name__ == "__main__":
    main()
