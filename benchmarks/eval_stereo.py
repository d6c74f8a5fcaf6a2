# SPDX-License-Identifier: Apache-2.0
"""Depth on the one stereo pair with measured disparities that scikit-image ships, against a constant prediction.

    python benchmarks/eval_stereo.py RUN --row trained --split views

Needs `pip install scikit-image`, or `--pictures FOLDER` with motorcycle_left.png, motorcycle_right.png and
motorcycle_disp.npz. Rows: `untrained` (the shape of RUN, fresh weights, seed 0), `trained` (RUN). Splits: `views`
learns from the left picture and is asked for the right one; `tiles` learns from every other tile of the left picture's
depths, as on a chessboard, and is asked for the others. Both are of one scene, so this shows that a head learns depth
from the features, not that it would know another scene. A constant is the mean or the median of what was learned from.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from opendino import logs
from opendino.eval import depth
from opendino.eval._features import FeatureConfig
from opendino.eval._results import markdown_table, number
from opendino.eval.adapters import open_backbone
from opendino.eval.depth import DepthConfig, DepthDataConfig, DepthHeadConfig
from opendino.models.vision_transformer import VisionTransformer

FOCAL, OFFSET, BASELINE = 994.978, 31.086, 0.193001
"""Pixels, pixels and metres of the pair at its own size (Middlebury 2014, "Motorcycle", shrunk by 4)."""
FAR = 6.0
"""End of the range, metres; the scene ends at five."""

Depth = Float[np.ndarray, "H W"]


def pictures_of_package() -> Path:
    """Where scikit-image keeps the pair: it fetches or finds it by its own call."""
    import skimage.data  # pyrefly: ignore[missing-import]

    skimage.data.stereo_motorcycle()
    return Path(skimage.data.__file__).parent


def depths(disparity: Depth) -> Depth:
    """Metres; 0 where no disparity was measured."""
    measured = np.isfinite(disparity) & (disparity > 0)
    return np.where(measured, BASELINE * FOCAL / (np.where(measured, disparity, 1) + OFFSET), 0).astype(np.float32)


def of_the_right(disparity: Depth) -> Depth:
    """Disparities of the right picture: those of the left one carried over, the nearer one where two meet."""
    found = np.zeros_like(disparity)
    rows, columns = np.nonzero(np.isfinite(disparity))
    nearest_last = np.argsort(disparity[rows, columns], kind="stable")
    rows, columns = rows[nearest_last], columns[nearest_last]
    values = disparity[rows, columns]
    places = np.rint(columns - values).astype(np.int64)
    inside = places >= 0
    found[rows[inside], places[inside]] = values[inside]
    return found


def chessboard(shape: tuple[int, int], tile: int) -> np.ndarray:
    """True on every other tile."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows // tile + columns // tile) % 2 == 0


def write_parts(pictures: Path, home: Path, split: str, size: tuple[int, int], tile: int) -> list[Depth]:
    """Folders train and val as the protocol reads them; their depth maps, `size` is (height, width)."""
    disparity = np.load(pictures / "motorcycle_disp.npz")["arr_0"]
    side = size[::-1]

    def shrunk(map_: Depth) -> Depth:
        return np.asarray(Image.fromarray(map_).resize(side, Image.Resampling.NEAREST))

    left = shrunk(depths(disparity))
    black = chessboard(left.shape, tile)
    parts = {
        "views": [("train", "left", left), ("val", "right", shrunk(depths(of_the_right(disparity))))],
        "tiles": [("train", "left", np.where(black, left, 0)), ("val", "left", np.where(black, 0, left))],
    }[split]
    for part, picture, map_ in parts:
        for folder in ("images", "depth"):
            (home / part / folder).mkdir(parents=True)
        image = Image.open(pictures / f"motorcycle_{picture}.png").convert("RGB")
        image.resize(side, Image.Resampling.BICUBIC).save(home / part / "images" / "0.png")
        np.save(home / part / "depth" / "0.npy", map_)
    return [map_ for _, _, map_ in parts]


def constants(train: Depth, val: Depth) -> dict[str, float]:
    """RMSE of the best constants, metres."""
    known, asked = train[train > 0], val[val > 0]
    return {name: float(np.sqrt(np.mean((asked - value(known)) ** 2)))
            for name, value in (("mean", np.mean), ("median", np.median))}  # fmt: skip


def main() -> None:
    """One row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--row", choices=["untrained", "trained"], required=True)
    parser.add_argument("--split", choices=["views", "tiles"], required=True)
    parser.add_argument("--head", choices=["lin1", "lin4", "dpt"], default="lin4")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--size", type=int, nargs=2, default=(176, 256), help="height and width, pixels")
    parser.add_argument("--tile", type=int, default=32, help="pixels")
    asked = parser.parse_args()
    logs.setup()
    torch.set_num_threads(1)
    backbone = open_backbone(asked.run)
    if asked.row == "untrained":
        torch.manual_seed(0)
        cast("VisionTransformer", backbone).init_weights()
    with tempfile.TemporaryDirectory() as folder:
        home, size = Path(folder), (asked.size[0], asked.size[1])
        train, val = write_parts(asked.pictures or pictures_of_package(), home, asked.split, size, asked.tile)
        head = DepthHeadConfig(
            head=asked.head, norm=True, iterations=asked.iterations, batch_size=1, lr=asked.lr, warmup=0.1, crop=size
        )
        data = DepthDataConfig(str(home / "train"), str(home / "val"), max_depth=FAR)
        found = depth.run(backbone, DepthConfig(data, head, FeatureConfig(size=32, device="cpu", progress=False)))
    rivals = constants(train, val)
    figures = {"RMSE": found.figures["rmse"], "AbsRel": found.figures["abs_rel"], "d1": found.figures["d1"]}
    figures |= {f"a constant's ({name})": value for name, value in rivals.items()}
    figures |= {"of the better constant's": found.figures["rmse"] / min(rivals.values())}
    row = [asked.row, asked.split, asked.head, *map(number, figures.values())]
    print(markdown_table(["features", "split", "head", *figures], [row]))
    print(json.dumps({"row": asked.row, "split": asked.split, "head": asked.head, "figures": figures}))


if __name__ == "__main__":
    main()
