# SPDX-License-Identifier: Apache-2.0
"""A folder of photographs to features: `opendino embed` beside transformers' pipeline, one core, interleaved.

python benchmarks/embed.py [--quick] [--photos FILE] [--images 16] [--rounds 3] [--precisions fp32 bf16 int8]
                           [--models S/14 tiny] [--merge 0.07]

Photographs are those of 500 x 375 in `photos.parquet` of the folder that OPENDINO_TEST_DATA names (or ../shared/data),
as files. Both sides open the same random weights from one folder of the Hugging Face kind and give CLS features. What a
run costs whatever its length (opening, hashing the weights) is taken off: two images are embedded too, and the
difference is what counts. With `--merge` the fast model also merges that share of the patches in each block. Seconds of
processor time, medians over the rounds. The last line is JSON.
"""

import argparse
import io
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, pipeline

from opendino.embed import EmbedConfig, embed, open_embedder, read

ROOT = Path(__file__).parents[1]
MODELS = {"S/14": (384, 12), "B/14": (768, 12), "tiny": (192, 4)}
"""Width and blocks."""

WAYS = {
    "pillow, plain model": {"decoder": "pillow", "optimize": False},
    "fast, plain model": {"decoder": "fast", "optimize": False},
    "fast, optimized model": {"decoder": "fast", "optimize": True},
}


def files(source: Path, folder: Path, count: int) -> None:
    """Photographs of 500 x 375 as files."""
    cells = [cell["bytes"] if isinstance(cell, dict) else cell for cell in pq.read_table(source)["image"].to_pylist()]
    taken = [cell for cell in cells if sorted(Image.open(io.BytesIO(cell)).size) == [375, 500]][:count]
    folder.mkdir()
    for number, cell in enumerate(taken):
        (folder / f"{number:03d}.jpg").write_bytes(cell)


def weights(folder: Path, width: int, depth: int) -> str:
    """Random weights and the published image settings, in a folder that both libraries open."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 64, image_size=518, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def ours(model: str, scratch: Path, precision: Any, way: dict) -> Callable[[Path], np.ndarray]:
    """Embedding a folder, the model opened before."""
    config = EmbedConfig(precision=precision, device="cpu", batch_size=8, threads=1, **way)
    open_embedder.cache_clear()

    def run(folder: Path) -> np.ndarray:
        shutil.rmtree(scratch, ignore_errors=True)
        return read(embed(model, str(folder), scratch, config).folder)[1]["cls"]

    return run


def theirs(model: str, precision: str) -> Callable[[Path], np.ndarray]:
    """The pipeline of transformers over the files, in batches of the same size."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    pipe = pipeline("image-feature-extraction", model=model, device="cpu", dtype=kind, batch_size=8)

    def run(folder: Path) -> np.ndarray:
        names = [str(path) for path in sorted(folder.iterdir())]
        return np.stack([one[0, 0].float().numpy() for one in pipe(names, return_tensors=True)])

    return run


def seconds(run: Callable[[Path], np.ndarray], folder: Path) -> tuple[float, np.ndarray]:
    """Processor time of a run, and what it found."""
    started = time.process_time()
    found = run(folder)
    return time.process_time() - started, found


def cell(
    name: str, model: str, root: Path, precision: str, rounds: int, merge: Sequence[float] = ()
) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds an image of every way, in turn, and the least cosine of its features to those of transformers."""
    ways = WAYS if precision != "int8" else {name: way for name, way in WAYS.items() if way["optimize"]}
    ways = ways | {f"merge={share:g}": WAYS["fast, optimized model"] | {"merge": share} for share in merge}
    runs = {way: ours(model, root / "out", precision, options) for way, options in ways.items()}
    runs["transformers"] = theirs(model, precision)  # which has no int8 of its own: fp32 then
    times: dict[str, list[float]] = {way: [] for way in runs}
    found = {}
    count = len(list((root / "photos").iterdir()))
    for _ in range(rounds):
        for way, run in runs.items():
            run(root / "two")  # opens the model where another was open
            few, _ = seconds(run, root / "two")
            many, found[way] = seconds(run, root / "photos")
            times[way].append((many - few) / (count - 2) * 1e3)
    middle = {way: float(np.median(values)) for way, values in times.items()}
    least = {}
    for way, value in middle.items():
        one, other = found[way], found["transformers"]
        cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        least[way] = float(cosine.min())
        print(
            f"| {name} | {precision} | {way} | {value:.1f} | {1e3 / value:.1f} | "
            f"{middle['transformers'] / value:.2f} | {least[way]:.5f} |",
            flush=True,
        )
    return middle, least


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="one round")
    arguments.add_argument("--photos", type=Path)
    arguments.add_argument("--images", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--precisions", nargs="*", default=["fp32", "bf16", "int8"])
    arguments.add_argument("--models", nargs="*", default=["S/14", "tiny"], choices=list(MODELS))
    arguments.add_argument("--merge", type=float, nargs="*", default=[])
    given = arguments.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    folder = Path(os.environ.get("OPENDINO_TEST_DATA", ROOT.parent / "shared" / "data"))
    rounds = 1 if given.quick else given.rounds
    told, rows = {}, []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        photos = given.photos or folder / "photos.parquet"
        files(photos, root / "photos", given.images)
        files(photos, root / "two", 2)
        print(
            "| model | precision | way | ms an image | images a second and core | times transformers | least cosine |"
        )
        print("|---|---|---|---|---|---|---|")
        for name in given.models:
            width, depth = MODELS[name]
            model = weights(root / f"model{width}", width, depth)
            default = 0.0
            for precision in given.precisions:
                middle, least = cell(name, model, root, precision, rounds, given.merge)
                default = default or middle["transformers"]
                ratios = {way: round(middle["transformers"] / value, 2) for way, value in middle.items()}
                ratios["fast, optimized model, over transformers in fp32"] = round(
                    default / middle["fast, optimized model"], 2
                )
                told[f"{name} {precision}"] = ratios
                rows.append(
                    {"model": name, "precision": precision, "ms": middle, "least_cosine": least, "default_ms": default}
                )
    print(json.dumps({"over_transformers": told, "rows": rows}))


if __name__ == "__main__":
    main()
