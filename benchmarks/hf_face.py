# SPDX-License-Identifier: Apache-2.0
"""The two tables of docs/how-to/hugging-face.md: how far the rules of positions are apart, and what a picture costs.

    python benchmarks/hf_face.py

One thread. Tables of positions have unit variance (37 x 37); times are medians of one image of 640 x 480.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from opendino import hf
from opendino.layers.pos_embed import resize_pos_embed
from opendino.models.positions import positions

SIZES = [(98, 98), (224, 224), (336, 336), (224, 336), (602, 602), (518, 518)]
PAIRS = [("hf", "official"), ("hf", "timm"), ("official", "timm")]


def main() -> None:
    """Print both tables."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    smooth = F.interpolate(torch.randn(1, 256, 9, 9), size=(37, 37), mode="bicubic")
    for name, table, sizes in (("smooth", smooth, SIZES), ("noise", torch.randn_like(smooth), [(224, 224)])):
        for size in sizes:
            print(f"{name} {size[0]}x{size[1]}: {distances(table / table.std(), size)}")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (480, 640, 3)).astype(np.uint8))
    tensor = torch.from_numpy(np.array(image)).movedim(-1, 0).contiguous()
    reference = getattr(transformers, "BitImageProcessorPil", transformers.BitImageProcessor)
    statistics_ = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    theirs, ours = reference(size={"shortest_edge": 256}, **statistics_), hf.Dinov2ImageProcessor()
    fast = hf.Dinov2ImageProcessor(backend="torch")
    for name, work in {
        f"transformers {transformers.__version__}, Pillow": lambda: theirs(image, return_tensors="pt"),
        "pil": lambda: ours(image, return_tensors="pt"),
        "torch": lambda: fast(image, return_tensors="pt"),
        "torch, of a tensor": lambda: fast(tensor, return_tensors="pt"),
        "Pillow's resize alone": lambda: image.resize((341, 256), Image.Resampling.BICUBIC),
    }.items():
        print(f"{name}: {milliseconds(work):.1f} ms")


def distances(table: torch.Tensor, size: tuple[int, int]) -> str:
    """Root mean square / largest difference of each pair of rules."""
    entries = torch.cat([torch.zeros(1, 1, table.shape[1]), table.flatten(2).transpose(1, 2)], dim=1)
    grid = (size[0] // 14, size[1] // 14)
    found = {}
    for rule in ("hf", "official", "timm"):
        numbers = positions(rule, False)
        offset, antialias = numbers["interpolate_offset"], numbers["interpolate_antialias"]
        found[rule] = resize_pos_embed(entries, grid, offset=offset, antialias=antialias)[:, 1:]
    apart = [(a, b, found[a] - found[b]) for a, b in PAIRS]
    return ", ".join(f"{a} and {b} {d.square().mean().sqrt():.3f} / {d.abs().max():.2f}" for a, b, d in apart)


def milliseconds(work: Callable[[], object]) -> float:
    """Median of 30 calls after 3."""
    times = []
    for _ in range(33):
        begin = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[3:])


if __name__ == "__main__":
    main()
