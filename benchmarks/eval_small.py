# SPDX-License-Identifier: Apache-2.0
"""Image-level and pixel-level protocols on small real data: pixels, an untrained backbone, a trained one, side by side.

    python benchmarks/eval_small.py RUN --data ../shared/data --table cifar10 --row trained

The rows of docs/results.md are by this script; each call makes one row of one table. Rows: `pixels` (colours of a small
picture, or of a patch, as features), `untrained` (the shape of RUN, fresh weights, seed 0), `trained` (RUN). Tables:
`cifar10` and `tinyimagenet100` (k-NN, five images a class, logistic regression, linear heads) and `camvid` (linear,
multi-scale and voting patches). Data are every n-th row of the files, so that a row stays short; `KEPT` says how many.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from opendino import logs
from opendino.axes import Images
from opendino.eval import knn, linear, logreg, segment
from opendino.eval._data import LabelledConfig
from opendino.eval._features import FeatureConfig
from opendino.eval._masked import MaskedConfig
from opendino.eval._results import markdown_table, number
from opendino.eval._segmenter import HeadConfig
from opendino.eval.adapters import Adapter, Backbone, open_backbone
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer

KEPT = {"cifar10": (5000, 2000), "tinyimagenet100": (5000, 2000), "camvid": (40, 25)}
"""Training and held-out images of each table."""

FILES = {"cifar10": ("train", "test"), "tinyimagenet100": ("train", "val"), "camvid": ("train", "val")}


class Pixels(Adapter):
    """Colours as features: each patch is its pixels, CLS their mean over patches.

    Args:
        size: side of the image, pixels.
        patch: side of a patch; `size` for the whole image in one.
    """

    def __init__(self, size: int, patch: int) -> None:
        super().__init__()
        self.embed_dim, self.patch_size, self.depth = 3 * patch * patch, patch, 1
        self.input_spec = InputSpec((size, size), 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.nothing = nn.Parameter(torch.zeros(1), requires_grad=False)  # names the device

    def layers(self, x: Images, wanted: Sequence[int], norm: bool) -> list[tuple[Tensor, Tensor]]:  # noqa: ARG002
        """The pixels of each patch, side by side."""
        patches = nn.functional.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)
        return [(patches, patches.mean(dim=1))] * len(wanted)


def backbone_of(row: str, run: str, table: str) -> Backbone:
    """What is measured in a row."""
    if row == "pixels":
        return Pixels(32, 8) if table == "camvid" else Pixels(16, 16)
    backbone = open_backbone(run)
    if row == "untrained":
        torch.manual_seed(0)
        cast("VisionTransformer", backbone).init_weights()
    return backbone


def subset(data: Path, table: str, home: Path, held_out: int = 0) -> tuple[str, str]:
    """Files of every n-th row."""
    places = []
    for part, most in zip(FILES[table], (KEPT[table][0], held_out or KEPT[table][1]), strict=True):
        whole = pq.read_table(data / f"{table}-{part}.parquet")
        rows = np.linspace(0, len(whole) - 1, min(most, len(whole))).astype(np.int64)
        pq.write_table(whole.take(pa.array(rows)), home / f"{part}.parquet")
        places.append(str(home / f"{part}.parquet"))
    return places[0], places[1]


def images(backbone: Backbone, train: str, val: str, home: Path) -> dict[str, float]:
    """The image-level protocols; features are computed once."""
    data, features = LabelledConfig(train, val), FeatureConfig(cache=str(home), progress=False)
    votes = knn.VoteConfig(k=(20,), feature="both")
    few = knn.VoteConfig(k=(5,), feature="both", n_per_class=(5,), tries=5)
    strengths = logreg.RegressionConfig(
        feature="both", standardize=True, values=8, exponents=(-5.0, 2.0), tolerance=1e-3
    )
    heads = linear.HeadsConfig(augment=False, iterations=500, every=0)
    return {
        "k-NN": knn.run(backbone, knn.KnnConfig(data, votes, features)).figures["top1_k20"],
        "5 a class": next(v for k, v in knn.run(backbone, knn.KnnConfig(data, few, features)).figures.items()
                          if "top1" in k and k != "top1_k5"),
        "logreg": logreg.run(backbone, logreg.LogregConfig(data, strengths, features)).figures["top1"],
        "linear": linear.run(backbone, linear.LinearConfig(data, heads, features)).figures["top1"],
    }  # fmt: skip


def pixels(backbone: Backbone, train: str, val: str, heads: Sequence[str]) -> dict[str, float]:
    """The pixel-level protocol with several heads, on images of 180 by 240 pixels."""
    figures = {}
    for head in heads:
        config = HeadConfig(
            head=head,  # type: ignore[arg-type]
            layers=min(4, backbone.depth) if head == "ms" else 1,
            short=180, crop=128, stride=96, iterations=150, batch_size=8, patches=20_000,
        )  # fmt: skip
        data = MaskedConfig(train, val, ignore=(11,))
        found = segment.run(backbone, segment.SegmentConfig(data, config, FeatureConfig(size=32, progress=False)))
        figures |= {f"{head} mIoU": found.figures["mIoU"], f"{head} aAcc": found.figures["aAcc"]}
    return figures


def main() -> None:
    """One row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--table", choices=list(KEPT), required=True)
    parser.add_argument("--row", choices=["pixels", "untrained", "trained"], required=True)
    parser.add_argument("--heads", nargs="+", default=["linear", "knn", "ms"])
    parser.add_argument("--held-out", type=int, default=0, help="most held-out images; 0 for those of KEPT")
    asked = parser.parse_args()
    logs.setup()
    torch.set_num_threads(1)
    backbone = backbone_of(asked.row, asked.run, asked.table)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        train, val = subset(asked.data, asked.table, home, asked.held_out)
        if asked.table == "camvid":
            figures = pixels(backbone, train, val, asked.heads)
        else:
            figures = images(backbone, train, val, home / "features")
    print(f"{asked.table}\n{markdown_table(['features', *figures], [[asked.row, *map(number, figures.values())]])}")
    print(json.dumps({"table": asked.table, "row": asked.row, "figures": figures}))


if __name__ == "__main__":
    main()
