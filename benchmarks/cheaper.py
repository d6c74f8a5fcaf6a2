# SPDX-License-Identifier: Apache-2.0
"""What cheaper arithmetic costs: k-NN and speed of a trained backbone in fp32, bf16, int8, and with merged tokens.

    python benchmarks/cheaper.py RUN cifar10-train.parquet cifar10-test.parquet
    python benchmarks/cheaper.py RUN TRAIN TEST --images 10000 2000 --merge 0.02 0.04 0.08 --dtype bf16
    python benchmarks/cheaper.py --quick

Each row is `opendino.optimize` with other settings on the same images; the first is the plain model in float32. Votes
of the 20 nearest training images, CLS and mean patch side by side; cosine is that of a test image's CLS with the plain
one, the mean over images. Speed is images a second of processor time on one thread, all ways in turn, median of rounds.
`--quick` takes fresh weights and the drawn images of a test set made here, whose votes say little: it shows that all
ways run. The last line is a JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from typing import Any, cast

import torch
from torch import Tensor

import opendino
from opendino.data.datasets import open_dataset
from opendino.data.rows import sample
from opendino.eval import knn
from opendino.eval._features import FeatureConfig, Features, extract
from opendino.fast.optimize import optimize
from opendino.models.vision_transformer import VisionTransformer


def ways(merge: list[float], dtype: str) -> dict[str, dict[str, Any] | None]:
    """Settings of `optimize` by the name of the row; None is the plain model."""
    rows: dict[str, dict[str, Any] | None] = {"plain fp32": None}
    rows |= {f"optimized {name}": {"dtype": name} for name in ("fp32", "bf16", "int8")}
    return rows | {f"optimized {dtype}, merge {share:g}": {"dtype": dtype, "merge": share} for share in merge}


def both(features: Features) -> Tensor:
    return features.select("both", normalize=False)


@torch.inference_mode()
def rates(models: dict[str, Any], images: Tensor, rounds: int) -> dict[str, float]:
    """Images a second of processor time."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            begun = time.process_time()
            model.forward_features(images)
            if number:
                seconds[name].append(time.process_time() - begun)
    return {name: len(images) / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", help="a backbone, labelled training images, labelled test images")
    parser.add_argument("--quick", action="store_true", help="fresh weights and no data: speed alone, under a minute")
    parser.add_argument("--images", type=int, nargs=2, default=(10_000, 2_000), help="most of training, of test")
    parser.add_argument("--merge", type=float, nargs="*", default=[0.02, 0.04, 0.08])
    parser.add_argument("--dtype", default="bf16", help="of the rows with merged tokens")
    parser.add_argument("--preset", default="vits14", help="of --quick")
    parser.add_argument("--size", type=int, default=None, help="side of the images, pixels")
    asked = parser.parse_args()
    if len(asked.places) != (0 if asked.quick else 3):
        parser.error("give a backbone, training images and test images; or --quick alone")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = cast(
        "VisionTransformer", opendino.create(asked.preset) if asked.quick else opendino.load(asked.places[0])
    )
    backbone = backbone.eval()
    side = asked.size or (224 if asked.quick else backbone.input_spec.size[0])
    models = {
        name: backbone if settings is None else optimize(backbone, **settings)
        for name, settings in ways(asked.merge, asked.dtype).items()
    }
    images = torch.randn(4 if side > 128 else 64, backbone.in_chans, side, side)
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for name, rate in rates(models, images, 5 if asked.quick else 15).items():
        found[name]["img_per_s"] = round(rate, 2)
    if not asked.quick:
        sources = zip(asked.places[1:], asked.images, strict=True)
        parts = [sample(open_dataset(source), most) for source, most in sources]
        plain = None
        for name, model in models.items():
            config = FeatureConfig(size=asked.size, optimize=False, progress=False, workers=1)
            train, test = (extract(model, part, config) for part in parts)
            plain = test if plain is None else plain
            labels = [torch.as_tensor(part.targets)[one.rows] for part, one in zip(parts, (train, test), strict=True)]
            votes = knn.evaluate(both(train), labels[0], both(test), labels[1], knn.VoteConfig(k=(20,)))[0]
            found[name]["knn"] = votes["top1_k20"]
            found[name]["cosine"] = float(torch.cosine_similarity(test.cls, plain.cls).mean())
            print(f"{name:28} {found[name]}", file=sys.stderr, flush=True)
    first = found["plain fp32"]["img_per_s"]
    for name, row in found.items():
        row["ratio"] = round(row["img_per_s"] / first, 2)
        print(f"{name:28}  " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    print(json.dumps({"ratios": {name: row["ratio"] for name, row in found.items()}, "rows": found}))


if __name__ == "__main__":
    main()
