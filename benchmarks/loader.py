# SPDX-License-Identifier: Apache-2.0
"""How fast images become batches: ms an image by phase, images a second by number of workers, memory, index of paths.

python benchmarks/loader.py [--workers 0 1 2] [--batches 10] [--photos FILE] [--paths 1000000]

Photographs are `photos.parquet` of the folder that OPENDINO_TEST_DATA names (or ../shared/data), else made JPEGs of
500 x 375. Where torchvision imports, its chain of the same transforms is timed beside ours.
"""

import argparse
import io
import itertools
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from opendino.data.augment import CropsConfig, MultiCrop
from opendino.data.collate import collate
from opendino.data.datasets import ImageDataset, open_dataset
from opendino.data.datasets._paths import PathTable
from opendino.data.loaders import pretrain_loader
from opendino.data.masking import MaskConfig, batch_masks
from opendino.data.samplers import keyed_rng

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


def made(folder: Path, name: str, images: list[Image.Image], format: str) -> Path:
    """A Parquet file of made pictures."""
    cells = []
    for image in images:
        stream = io.BytesIO()
        image.save(stream, format)
        cells.append(stream.getvalue())
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

    def augment(config: CropsConfig) -> float:
        crop = MultiCrop(config, channels)
        return seconds(lambda: [crop(image, keyed_rng(0, "crops", i)) for i, image in enumerate(images)])

    views = [MultiCrop(crops, channels)(image, keyed_rng(0, "crops", i)) for i, image in enumerate(images)]
    side = crops.global_size // patch

    def put_together() -> None:
        masks = batch_masks(2 * count, (side, side), MaskConfig(), keyed_rng(0, "masks", 0))
        collate(views, masks, list(range(count)))

    cut, with_colour, everything = (
        augment(config) for config in (replace(crops, **OFF), replace(crops, blur="none", solarize=0.0), crops)
    )
    return {
        "decode": seconds(lambda: [dataset.image(i) for i in range(count)]) / count * 1e3,
        "crops": cut / count * 1e3,
        "jitter, grey": (with_colour - cut) / count * 1e3,
        "blur, solarize": (everything - with_colour) / count * 1e3,
        "masks, collate": seconds(put_together) / count * 1e3,
    }


def torchvision_chain(crops: CropsConfig, images: list[Image.Image]) -> float | None:
    """Milliseconds an image of torchvision's transforms with the same settings, to normalised floats."""
    try:
        from torchvision import transforms as T  # pyrefly: ignore[missing-import]
    except (ImportError, RuntimeError):
        return None
    bicubic = T.InterpolationMode.BICUBIC
    jitter = T.RandomApply(
        [T.ColorJitter(crops.brightness, crops.contrast, crops.saturation, crops.hue)], p=crops.jitter
    )
    end = T.Compose([T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])

    def chain(size: int, scale: tuple[float, float], blur: float, solarize: float) -> T.Compose:
        steps = [
            T.RandomResizedCrop(size, scale=scale, interpolation=bicubic),
            T.RandomHorizontalFlip(crops.flip),
            jitter,
        ]
        steps += [T.RandomGrayscale(crops.gray), T.RandomApply([T.GaussianBlur(9, (0.1, 2.0))], p=blur)]
        return T.Compose([*steps, T.RandomSolarize(128, p=solarize), end])

    views = [chain(crops.global_size, crops.global_scale, 0.0, 0.0)]
    views += [chain(crops.global_size, crops.global_scale, 0.9, crops.solarize)]
    views += [chain(crops.local_size, crops.local_scale, 0.5, 0.0)] * crops.local_number
    return seconds(lambda: [view(image) for image in images for view in views]) / len(images) * 1e3


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


def throughput(dataset: ImageDataset, crops: CropsConfig, patch: int, batch: int, workers: int, batches: int) -> str:
    """One line: images a second of wall time, share of cores used, memory."""
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
    return f"| {workers} | {rate:,.0f} | {held:,.0f} |"


def index_of_paths(count: int) -> None:
    """A table of made paths, and a scan of real empty files."""
    started = time.perf_counter()
    table = PathTable.collect(b"n%08d/n%08d_%d.JPEG" % (i // 1000, i // 1000, i % 1000) for i in range(count))
    held = (table.text.nbytes + table.offsets.nbytes) / 2**20
    print(f"\ntable of {count:,} paths: {time.perf_counter() - started:.2f} s, {held:.0f} MB, shared by all workers")
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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--batches", type=int, default=6)
    arguments.add_argument("--images", type=int, default=40, help="images of the timing by phase")
    arguments.add_argument("--photos", type=Path, help="Parquet file of photographs")
    arguments.add_argument("--paths", type=int, default=1_000_000)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    folder = Path(os.environ.get("OPENDINO_TEST_DATA", ROOT.parent / "shared" / "data"))
    photos = given.photos or folder / "photos.parquet"
    with tempfile.TemporaryDirectory() as scratch:
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
        for title, source, channels, crops, patch, batch in cases:
            dataset = open_dataset(source, channels=channels)
            count = given.images if batch == 16 else 10 * given.images
            times = phases(dataset, crops, patch, count)
            print(
                f"\n## {title}\n\n| {' | '.join(times)} | total ms an image, one core |\n|{'---|' * (len(times) + 1)}"
            )
            print(f"| {' | '.join(f'{value:.3f}' for value in times.values())} | {sum(times.values()):.3f} |")
            peer = (
                torchvision_chain(crops, [cast("Image.Image", dataset.image(i)) for i in range(min(count, 100))])
                if channels == 3
                else None
            )
            found = f"{peer:.1f} ms" if peer else "does not import here"
            print(f"torchvision, decoded image to normalised crops: {found}")
            print("\n| workers | images a second | MB, all processes |\n|---|---|---|")
            for workers in given.workers:
                print(throughput(dataset, crops, patch, batch, workers, given.batches), flush=True)
    index_of_paths(given.paths)


if __name__ == "__main__":
    main()
