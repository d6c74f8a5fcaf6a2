# SPDX-License-Identifier: Apache-2.0
"""Planted copies and planted leaks among real photographs: precision and recall of dedup and decontamination.

    python benchmarks/curate_truth.py DATA/photos.parquet [photos=250] [copy.model=...] [copy.run_code=true]

The pool is the photographs but every tenth, five copies of every fifth (mirrored, grey, JPEG of quality 40, half the
size, a crop of nine tenths of each side), and one copy, of changing kind, of every tenth, an evaluation image.
Pairs are what is counted: of copies, two images of one component; of leaks, images that were dropped.
"""

import argparse
import io
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from opendino import config as settings
from opendino.curate import pipeline
from opendino.curate.index import read_index, usable

THRESHOLDS = (0.7, 0.75, 0.8)


def crop(image):
    width, height = image.size
    return image.crop((width // 20, height // 20, width - width // 20, height - height // 20))


def squeezed(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


KINDS = {
    "mirrored": ImageOps.mirror,
    "grey": ImageOps.grayscale,
    "jpeg40": squeezed,
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "crop90": crop,
}


def photographs(path: Path, most: int) -> Iterator[Image.Image]:
    for data in pq.read_table(path, columns=["image"])["image"].to_pylist()[:most]:
        image = Image.open(io.BytesIO(data["bytes"] if isinstance(data, dict) else data))
        image.draft("RGB", (400, 400))
        image = image.convert("RGB")
        image.thumbnail((400, 400))
        yield image


def plant(path: Path, most: int, home: Path) -> None:
    """Write pool and evaluation set; the name before the dash is the photograph's number."""
    for name in ("pool", "val"):
        (home / name).mkdir()
    for number, image in enumerate(photographs(path, most)):
        if number % 10 == 0:
            image.save(home / "val" / f"{number}-original.png")
            kind = list(KINDS)[number // 10 % len(KINDS)]
            KINDS[kind](image).save(home / "pool" / f"{number}-{kind}.png")
            continue
        image.save(home / "pool" / f"{number}-original.png")
        if number % 5 == 1:
            for kind, change in KINDS.items():
                change(image).save(home / "pool" / f"{number}-{kind}.png")


def keys(home: Path) -> dict[int, str]:
    index = home / "out" / "index"
    table = read_index(index, usable(index), ["key"]).to_pydict()
    return dict(zip(table["row"], table["key"], strict=True))


def score(found: set, planted: set) -> tuple[float, float]:
    right = len(found & planted)
    return right / max(len(found), 1), right / max(len(planted), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="photographs: whatever opendino.data opens")
    parser.add_argument("words", nargs="*", help="photos=N, and settings of opendino curate")
    given = parser.parse_args()
    path, words = given.data, given.words
    most = next((int(word.partition("=")[2]) for word in words if word.startswith("photos=")), 250)
    words = [word for word in words if not word.startswith("photos=")]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        plant(Path(path), most, home)
        print("| threshold | copies: precision | recall | missed by kind | leaks: precision | recall |")
        print("|---|---|---|---|---|---|")
        for threshold in THRESHOLDS:
            recipe = settings.load(
                pipeline.CurateConfig,
                None,
                [f"out={home / 'out'}", f"index.sources=[{home / 'pool'}]", f"references=[{home / 'val'}]",
                 f"dedup.threshold={threshold}", f"decontaminate.threshold={threshold}", *words],
            )  # fmt: skip
            pipeline.run(recipe, until="decontaminate")
            print(line(home, threshold), flush=True)


def line(home: Path, threshold: float) -> str:
    names = keys(home)
    photo = {row: name.partition("-")[0] for row, name in names.items()}
    copies = pq.read_table(home / "out" / "dedup" / "copies.parquet").to_pydict()
    groups: dict[int, list[int]] = {}
    for row, component in zip(copies["row"], copies["component"], strict=True):
        groups.setdefault(component, []).append(row)
    found = {pair for rows in groups.values() for pair in combinations(sorted(rows), 2)}
    same: dict[str, list[int]] = {}
    for row, number in photo.items():
        same.setdefault(number, []).append(row)
    planted = {pair for rows in same.values() for pair in combinations(sorted(rows), 2)}
    missed = [names[row].partition("-")[2] for pair in planted - found for row in pair]
    kinds = {kind: missed.count(f"{kind}.png") for kind in KINDS if f"{kind}.png" in missed}
    leaks = set(pq.read_table(home / "out" / "decontaminate" / "leaks.parquet")["row"].to_pylist())
    kept = set(np.load(home / "out" / "dedup" / "kept.npy").tolist())
    real = {row for row, number in photo.items() if int(number) % 10 == 0 and row in kept}
    first, second = score(found, planted), score(leaks, real)
    figures = f"{first[0]:.3f} | {first[1]:.3f} | {kinds or ''} | {second[0]:.3f} | {second[1]:.3f}"
    return f"| {threshold} | {figures} |"


if __name__ == "__main__":
    main()
