# SPDX-License-Identifier: Apache-2.0
"""Planted copies and leaks among real images, through `opendino curate`: precision and recall, and class entropy.

    python benchmarks/curate_truth.py DATA/photos.parquet [images=250] [copy.model=...] [copy.run_code=true]
    python benchmarks/curate_truth.py DATA/tinyimagenet100-train.parquet tail=1 [embed.model=...]
    python benchmarks/curate_truth.py DATA/tinyimagenet100-train.parquet chance=10000    # strangers, harder crops

The pool is the images but every tenth, five copies of every fifth (mirrored, grey, JPEG of quality 40, half the
size, a crop of nine tenths of each side), and one copy, of changing kind, of every tenth, an evaluation image.
Pairs are what is counted: of copies, two images of one component; of leaks, images that were dropped.
With tail=A the classes are first made as uneven as 1 / rank^A, and at the end a third of what is left is drawn evenly
from the clusters of embed.model: the entropy of the labels before and after, and in a random draw of that size.
"""

import argparse
import io
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps

from opendino.cli.main import main as command
from opendino.curate._embedders import EmbedConfig, open_embedder
from opendino.curate.balance import entropy
from opendino.curate.index import read_index, usable

THRESHOLDS = ("0.7", "0.75", "0.8")  # of copies, or of copies and leaks: 0.76/0.8


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


def pictures(path: Path, most: int | None, tail: float) -> Iterator[tuple[str, Image.Image]]:
    """Class and picture; with a tail the first class whole and ever fewer of the next ones, mixed."""
    table = pq.read_table(path, columns=["image", "label_name"])
    names = np.array(table["label_name"].to_pylist())
    rows = np.arange(len(names))
    if tail:
        kept = []
        for rank, name in enumerate(np.unique(names), 1):
            mine = rows[names == name]
            kept.append(mine[: max(round(len(mine) / rank**tail), 3)])
        rows = np.random.default_rng(0).permutation(np.concatenate(kept))
    for row in rows[:most].tolist():
        data = table["image"][row].as_py()
        image = Image.open(io.BytesIO(data["bytes"] if isinstance(data, dict) else data))
        image.draft("RGB", (400, 400))
        image = image.convert("RGB")
        image.thumbnail((400, 400))
        yield str(names[row]).replace("/", " "), image


def plant(images: Iterator[tuple[str, Image.Image]], home: Path) -> None:
    """Write pool and evaluation set, a folder a class; the name before the dash is the image's number."""
    for number, (label, image) in enumerate(images):
        for name in ("pool", "val"):
            (home / name / label).mkdir(parents=True, exist_ok=True)
        if number % 10 == 0:
            image.save(home / "val" / label / f"{number}-original.png")
            kind = list(KINDS)[number // 10 % len(KINDS)]
            KINDS[kind](image).save(home / "pool" / label / f"{number}-{kind}.png")
            continue
        image.save(home / "pool" / label / f"{number}-original.png")
        if number % 5 == 1:
            for kind, change in KINDS.items():
                change(image).save(home / "pool" / label / f"{number}-{kind}.png")


def keys(home: Path) -> dict[int, str]:
    index = home / "out" / "index"
    table = read_index(index, usable(index), ["key"]).to_pydict()
    return {row: Path(key).name for row, key in zip(table["row"], table["key"], strict=True)}


def score(found: set, planted: set) -> tuple[float, float]:
    right = len(found & planted)
    return right / max(len(found), 1), right / max(len(planted), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="photographs: whatever opendino.data opens")
    parser.add_argument("words", nargs="*", help="photos=N, and settings of opendino curate")
    given = parser.parse_args()
    own = {"images": "0", "tail": "0", "chance": "0", "thresholds": ",".join(THRESHOLDS)}
    own |= dict(word.split("=", 1) for word in given.words if word.partition("=")[0] in own)
    words = [word for word in given.words if word.partition("=")[0] not in own]
    if int(own["chance"]):
        chance(Path(given.data), int(own["chance"]))
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        plant(pictures(Path(given.data), int(own["images"]) or None, float(own["tail"])), home)
        rows = []
        base = [f"out={home / 'out'}", f"index.sources=[{home / 'pool'}]", f"references=[{home / 'val'}]"]
        for threshold in own["thresholds"].split(","):
            copies, _, leaks = threshold.partition("/")
            chosen = [*base, f"dedup.threshold={copies}", f"decontaminate.threshold={leaks or copies}", *words]
            curated("decontaminate", *chosen)
            rows.append(line(home, threshold))
        print(f"\n{len(keys(home))} images in the pool")
        print("| threshold | copies: precision | recall | missed by kind | leaks: precision | recall |")
        print("|---|---|---|---|---|---|")
        print("\n".join(rows), flush=True)
        if float(own["tail"]):
            left = len(np.load(home / "out" / "decontaminate" / "kept.npy"))
            curated("manifest", *chosen, f"balance.size={left // 3}")
            balanced(home)


def chance(path: Path, images: int) -> None:
    """Images that have another one above a threshold, and crops that are above it, of a thousand."""
    embedder = open_embedder(EmbedConfig("thumbnail"))
    rows = np.random.default_rng(1).permutation(pq.read_metadata(path).num_rows)[:images]
    table = pq.read_table(path, columns=["image"])["image"]
    crops = {"a twentieth of each side": (1, 1, 1, 1), "a tenth of each side": (2, 2, 2, 2),
             "a tenth right and below": (0, 0, 2, 2)}  # fmt: skip
    found: dict[str, list] = {name: [] for name in ("whole", *crops)}
    for number, row in enumerate(rows.tolist()):
        data = table[row].as_py()
        image = Image.open(io.BytesIO(data["bytes"] if isinstance(data, dict) else data)).convert("RGB")
        found["whole"].append(embedder.prepare(image))
        for name, (left, top, right, below) in crops.items() if number < 1000 else ():
            width, height = image.width // 20, image.height // 20
            box = (left * width, top * height, image.width - right * width, image.height - below * height)
            found[name].append(embedder.prepare(image.crop(box)))
    rows = {name: torch.nn.functional.normalize(embedder.embed(torch.stack(part))) for name, part in found.items()}
    whole = rows.pop("whole")
    nearest = torch.cat([
        (whole[at : at + 1000] @ whole.T - 2 * torch.eye(len(whole))[at : at + 1000]).max(dim=1).values
        for at in range(0, len(whole), 1000)
    ])  # fmt: skip
    print(
        f"of {len(whole)} images: share with another above, and share of crops above\n| threshold | another |", end=""
    )
    print("".join(f" {name} |" for name in crops) + "\n|---|---|" + "---|" * len(crops))
    for threshold in (0.7, 0.75, 0.8):
        shares = [float(((part * whole[: len(part)]).sum(dim=1) > threshold).float().mean()) for part in rows.values()]
        shown = " | ".join(f"{share:.4f}" for share in (float((nearest > threshold).float().mean()), *shares))
        print(f"| {threshold} | {shown} |")


def curated(*words: str) -> None:
    """The command itself."""
    if command(["curate", *words]):
        raise SystemExit(1)


def balanced(home: Path) -> None:
    """Entropy of the labels of what was left, of the balanced sample and of a random one."""
    index = home / "out" / "index"
    left, drawn = (np.load(home / "out" / stage / "kept.npy") for stage in ("decontaminate", "balance"))
    chance = np.sort(np.random.default_rng(0).choice(left, len(drawn), replace=False))
    found = []
    for rows in (left, chance, drawn):
        counts = np.unique(read_index(index, rows, ["label"])["label"].to_pylist(), return_counts=True)[1]
        found.append((len(rows), len(counts), entropy(counts)))
    print("| | images | classes | entropy, nats |\n|---|---|---|---|")
    for name, (images, classes, nats) in zip(("left", "random third", "balanced third"), found, strict=True):
        print(f"| {name} | {images} | {classes} | {nats:.3f} |")


def line(home: Path, threshold: str) -> str:
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
