# SPDX-License-Identifier: Apache-2.0
"""Semantic correspondence: where a point of one image lies in another, by the nearest patch feature, without training.

The data is a JSON file: a list of {"source": file, "target": file, "source_points": [[x, y], ...], "target_points":
[[x, y], ...]}, pixels, with an optional box "target_box": [left, top, right, bottom] whose longer side the threshold is
a part of (else the image's). PCK@a is the share of points that are found within that part.

Read next: `_dense.py`.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from opendino import config as settings
from opendino.data.crops import size_of
from opendino.data.decode import Decoded, decode
from opendino.data.transforms import EvalTransform
from opendino.distributed import all_reduce_sum, is_main, rank, world_size
from opendino.errors import ConfigError, DataError
from opendino.eval._dense import evaluating, feature_maps, to_pixels
from opendino.eval._features import FeatureConfig, place, transform_of
from opendino.eval._results import Results, describe
from opendino.eval._segmentation import scaled
from opendino.eval.adapters import Backbone


@dataclass(frozen=True)
class MatchConfig:
    """How points are matched.

    Attributes:
        thresholds: parts of the longer side within which a point counts as found.
        short: shorter side of the images, pixels; the longer follows.
        layer: block whose patches are compared, counted from 0; None takes the last.
    """

    thresholds: tuple[float, ...] = (0.05, 0.1, 0.2)
    short: int = 448
    layer: int | None = None

    def __post_init__(self) -> None:
        if not self.thresholds or not min(self.thresholds) > 0 or self.short < 1:
            raise ConfigError("correspond.thresholds and correspond.short have to be positive; correct them")


@dataclass(frozen=True)
class CorrespondConfig:
    """Settings of `opendino eval correspond`.

    Attributes:
        data: JSON file of pairs.
        correspond: how points are matched.
        features: how images become features.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; None where the file says it.
        orient: whether the EXIF orientation is applied; points count in oriented images then.
    """

    data: str = ""
    correspond: MatchConfig = field(default_factory=MatchConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    value_range: tuple[float, float] | None = None
    orient: bool = True


class PointPair(NamedTuple):
    """Two images and points of both, in pixels; `side` is what thresholds are parts of, 0 for the target's own."""

    source: Path
    target: Path
    source_points: Float[Tensor, "p 2"]
    target_points: Float[Tensor, "p 2"]
    side: float


def run(
    backbone: Backbone,
    config: CorrespondConfig,
    *,
    out: Path | None = None,
    source: Mapping[str, object] | None = None,
) -> Results:
    """Match all points of all pairs; every process of a group calls it.

    Args:
        backbone: moved to `config.features.device`.
        config: pairs and features.
        out: folder for the JSON file, or None.
        source: where the model came from, for the record.

    Raises:
        ConfigError: no data named.
        DataError: pairs that cannot be used.
    """
    start = time.perf_counter()
    if not config.data:
        raise ConfigError(
            "data is missing: correspond needs a JSON file of pairs of images with points; give data=FILE"
        )
    place(backbone, config.features)
    pairs, transform = read_pairs(Path(config.data)), transform_of(backbone, config.features)
    hits = torch.zeros(len(config.correspond.thresholds) + 1, dtype=torch.float64)
    with evaluating(backbone), torch.no_grad():
        for pair in pairs[rank() :: world_size()]:
            found, side = matched(backbone, pair, config, transform)
            distance = (found - pair.target_points).norm(dim=1)
            hits[:-1] += torch.tensor([float((distance <= t * side).sum()) for t in config.correspond.thresholds])
            hits[-1] += len(distance)
    hits = all_reduce_sum(hits.to(next(backbone.parameters()).device)).cpu()
    figures = {
        f"PCK@{t:g}": 100 * float(hit / hits[-1]) for t, hit in zip(config.correspond.thresholds, hits, strict=False)
    }
    record = {"source": config.data, "pairs": len(pairs), "points": int(hits[-1])}
    model, seconds = describe(backbone, source or {}), time.perf_counter() - start
    results = Results("correspond", figures, record, model, settings.to_dict(config), seconds)
    if out is not None and is_main():
        results.write(out)
    return results


def matched(
    backbone: Backbone, pair: PointPair, config: CorrespondConfig, transform: EvalTransform
) -> tuple[Float[Tensor, "p 2"], float]:
    """Where the source's points are found in the target, pixels; and the side that thresholds are parts of."""
    channels = backbone.input_spec.channels
    images = [
        decode(path, channels, orient=config.orient, value_range=config.value_range)
        for path in (pair.source, pair.target)
    ]
    layer = backbone.depth - 1 if config.correspond.layer is None else config.correspond.layer
    fields, factors = [], []
    for image in images:
        small = _resized(image, config.correspond.short)
        pixels = transform.to_tensor(small)[None].to(next(backbone.parameters()).device)
        ((grid, _),) = feature_maps(backbone, pixels, [layer], precision=config.features.precision)
        height, width = pixels.shape[2:]
        fields.append(to_pixels(grid, height, width, backbone.patch_size)[0].cpu())
        factors.append(torch.tensor([width / size_of(image)[1], height / size_of(image)[0]]))
    found = nearest_points(fields[0], fields[1], (pair.source_points + 0.5) * factors[0])
    return found / factors[1] - 0.5, pair.side or float(max(size_of(images[1])))


def nearest_points(
    source: Float[Tensor, "D H W"], target: Float[Tensor, "D h w"], points: Float[Tensor, "p 2"]
) -> Float[Tensor, "p 2"]:
    """For each point of the source the centre of the target's pixel with the nearest feature, by cosine.

    Args:
        source: features of every pixel.
        target: features of every pixel.
        points: x and y in the source, where 0.5 is the centre of the first pixel.
    """
    height, width = source.shape[1:]
    grid = points / torch.tensor([width, height]) * 2 - 1
    asked = F.grid_sample(source[None], grid[None, None], align_corners=False, padding_mode="border")[0, :, 0].T
    similarity = F.normalize(asked, dim=1) @ F.normalize(target.flatten(1), dim=0)
    best = similarity.argmax(dim=1)
    return torch.stack([best % target.shape[2], best // target.shape[2]], dim=1) + 0.5


def read_pairs(path: Path) -> list[PointPair]:
    """Pairs of a JSON file; files are found from its folder.

    Raises:
        DataError: it is no such file, an image is missing, or the numbers of points differ.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        pairs = []
        for row in rows:
            points = [torch.tensor(row[name], dtype=torch.float32) for name in ("source_points", "target_points")]
            box = row.get("target_box")
            side = float(max(box[2] - box[0], box[3] - box[1])) if box else 0.0
            files = [path.parent / row[name] for name in ("source", "target")]
            if points[0].shape != points[1].shape or points[0].ndim != 2 or points[0].shape[1] != 2:
                raise DataError(f"{path}: {row['source']} and {row['target']} need equally many points [x, y]")
            pairs.append(PointPair(files[0], files[1], points[0], points[1], side))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path}: is no list of pairs with source, target and their points ({error!r})") from None
    missing = [file for pair in pairs for file in pair[:2] if not file.is_file()]
    if missing or not pairs:
        raise DataError(f"{missing[0] if missing else path}: {'is missing' if missing else 'holds no pair'}")
    return pairs


def _resized(image: Decoded, short: int) -> Decoded:
    return scaled(image, short, int(np.iinfo(np.int32).max))
