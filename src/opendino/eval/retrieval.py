# SPDX-License-Identifier: Apache-2.0
"""Retrieval by cosine: mean average precision in the revisited Oxford and Paris manner, recall, precision, GAP.

Two ways to say what is right. `data.ground_truth`: a JSON file with the fields of the published files (`imlist`,
`qimlist`, and for each query in `gnd` a box `bbx` and the database rows `easy`, `hard`, `junk`); those are pickles,
which this package never opens, so they have to be written as JSON once. Or labels: `data.queries` and `data.database`
are data sets with labels, and what has the query's label is right; queries whose label the database lacks are
distractors, which count for GAP alone.

Read next: `_ranking.py`, `_features.py`.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from opendino import config as settings
from opendino.data.datasets import ImageDataset, open_dataset
from opendino.data.datasets._base import DEFAULT, DecodeOptions
from opendino.data.decode import Decoded
from opendino.distributed import is_main
from opendino.errors import ConfigError, DataError
from opendino.eval._data import same_place
from opendino.eval._features import FeatureConfig, FeatureKind, extract, place
from opendino.eval._ranking import (
    SETUPS,
    average_precision,
    global_average_precision,
    precision_at,
    recall_at,
)
from opendino.eval._results import Results, describe
from opendino.eval.adapters import Backbone
from opendino.precision import full_float32

_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".JPG")


@dataclass(frozen=True)
class RetrievalDataConfig:
    """Queries and database.

    Attributes:
        ground_truth: JSON file in the manner of the revisited Oxford and Paris sets.
        images: folder of its images.
        queries: labelled images that ask; with `database`, in place of `ground_truth`.
        database: labelled images that are ranked.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; None where the file says it.
        orient: whether the EXIF orientation is applied; boxes of a ground truth count in oriented images then.
    """

    ground_truth: str = ""
    images: str = ""
    queries: str = ""
    database: str = ""
    value_range: tuple[float, float] | None = None
    orient: bool = True


@dataclass(frozen=True)
class RankConfig:
    """What is compared, and which figures.

    Attributes:
        feature: CLS, mean of the patches, or both side by side.
        k: lengths for recall and precision.
    """

    feature: FeatureKind = "cls"
    k: tuple[int, ...] = (1, 5, 10)

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"retrieval.k = {list(self.k)}: give at least one length, each 1 or more")


@dataclass(frozen=True)
class RetrievalConfig:
    """Settings of `opendino eval retrieval`."""

    data: RetrievalDataConfig = field(default_factory=RetrievalDataConfig)
    retrieval: RankConfig = field(default_factory=RankConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)


class Truth(NamedTuple):
    """Rows of the database that a query's answer is judged by."""

    easy: tuple[int, ...] = ()
    hard: tuple[int, ...] = ()
    junk: tuple[int, ...] = ()


class Listed(ImageDataset):
    """Named images of a folder, some cut to a box.

    Args:
        folder: of the images.
        names: with or without a suffix.
        boxes: left, top, right and bottom in pixels for each, or None.
        options: how images are decoded.

    Raises:
        DataError: an image is missing.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        boxes: Sequence[Sequence[float]] | None = None,
        options: DecodeOptions = DEFAULT,
    ) -> None:
        self.name, self.options, self.classes = str(folder), options, []
        self._paths = [self._find(folder, name) for name in names]
        self._boxes = boxes

    @staticmethod
    def _find(folder: Path, name: str) -> Path:
        for suffix in _SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
        raise DataError(f"{folder / name}: is missing; the ground truth names it, check data.images")

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> Path:
        """The image's path."""
        return self._paths[index]

    def identify(self, index: int) -> str:
        """The image's path, with its box."""
        return f"{self._paths[index]}{list(self._boxes[index]) if self._boxes else ''}"

    def image(self, index: int) -> Decoded:
        """The decoded image, cut to its box."""
        image = super().image(index)
        if self._boxes is None:
            return image
        left, top, right, bottom = (round(edge) for edge in self._boxes[index])
        if isinstance(image, np.ndarray):
            return image[max(top, 0) : bottom, max(left, 0) : right]  # below 0 it would count from the other end
        return image.crop((left, top, right, bottom))


def run(
    backbone: Backbone,
    config: RetrievalConfig,
    *,
    out: Path | None = None,
    source: Mapping[str, object] | None = None,
) -> Results:
    """Rank a database for every query; every process of a group calls it.

    Args:
        backbone: moved to `config.features.device`.
        config: data and features.
        out: folder for the JSON file, or None.
        source: where the model came from, for the record.

    Raises:
        ConfigError: neither ground truth nor labelled parts are named, or both parts are the same.
        DataError: images or ground truth that cannot be used.
    """
    start = time.perf_counter()
    place(backbone, config.features)
    data = config.data
    options = DecodeOptions(backbone.input_spec.channels, data.orient, data.value_range)
    if data.ground_truth:
        queries, database, truths = read_truth(Path(data.ground_truth), Path(data.images), options)
    elif data.queries and data.database:
        if same_place(data.queries, data.database):
            raise ConfigError(
                f"data.queries = {data.queries} and data.database are the same: each image would find itself; give "
                "queries that are not in the database"
            )
        queries, database = (open_dataset(part, **asdict(options)) for part in (data.queries, data.database))
        truths = None
    else:
        raise ConfigError("data is missing: give data.queries and data.database, or data.ground_truth and data.images")
    # Boxes are not part of a file, so features of cut queries are not kept.
    without = replace(config.features, cache="")
    patches = config.retrieval.feature != "cls"
    asked = extract(backbone, queries, without if truths else config.features, what="queries", patches=patches)
    known = extract(backbone, database, config.features, what="database", patches=patches)
    skipped = [*asked.skipped, *known.skipped]
    if truths is not None and skipped:
        raise DataError(f"{skipped[0]}: cannot be read, and rows of the ground truth would shift")
    ranked, similarity = rank_all(*(part.select(config.retrieval.feature, normalize=True) for part in (asked, known)))
    if truths is not None:
        figures = revisited(ranked, truths, config.retrieval.k)
    else:
        figures = by_label(ranked, similarity, _labels(queries, asked.rows, database, known.rows), config.retrieval.k)
    record = {**settings.to_dict(data), "source": data.ground_truth or data.database, "query_images": len(asked),
              "database_images": len(known), "skipped": skipped}  # fmt: skip
    model, seconds = describe(backbone, source or {}), time.perf_counter() - start
    notes = (f"{len(skipped)} images could not be read and were left out",) if skipped else ()
    results = Results("retrieval", figures, record, model, settings.to_dict(config), seconds, notes)
    if out is not None and is_main():
        results.write(out)
    return results


def rank_all(
    queries: Float[Tensor, "q D"], database: Float[Tensor, "n D"]
) -> tuple[Int[np.ndarray, "q n"], Float[np.ndarray, " q"]]:
    """Database rows of every query, best first, and the best similarity; ties go to the smaller row."""
    with full_float32():
        similarity = queries.float() @ database.float().T
    ranked = similarity.argsort(dim=1, descending=True, stable=True)
    return ranked.numpy(), similarity.amax(dim=1).numpy().astype(np.float64)


def revisited(ranked: Int[np.ndarray, "q n"], truths: Sequence[Truth], ks: Sequence[int]) -> dict[str, float]:
    """`mAP_easy`, `mAP_medium`, `mAP_hard` and mean precisions `mP@k_...`, in percent.

    Queries without an answer in a setup do not count in it.
    """
    figures: dict[str, float] = {}
    for setup, (right_names, junk_names) in SETUPS.items():
        judged = []
        for row, truth in zip(ranked, truths, strict=True):
            right = {r for name in right_names for r in getattr(truth, name)}
            junk = {r for name in junk_names for r in getattr(truth, name)}
            if right:
                judged.append((row, right, junk))
        if judged:
            figures[f"mAP_{setup}"] = 100 * float(np.mean([average_precision(*one) for one in judged]))
            for k in ks:
                means = [precision_at(row, right, k, junk) for row, right, junk in judged]
                figures[f"mP@{k}_{setup}"] = 100 * float(np.mean(means))
    return figures


def by_label(
    ranked: Int[np.ndarray, "q n"],
    similarity: Float[np.ndarray, " q"],
    labels: tuple[list[str], list[str]],
    ks: Sequence[int],
) -> dict[str, float]:
    """`mAP`, `recall@k`, `accuracy` of the nearest over queries with an answer; `GAP` with distractors, `GAP-` without.

    Args:
        ranked: database rows of every query.
        similarity: of the nearest, its confidence.
        labels: of the queries, and of the database.
        ks: lengths for recall.

    Raises:
        DataError: no query has an answer.
    """
    asked, known = np.array(labels[0]), np.array(labels[1])
    answers = [np.flatnonzero(known == label).tolist() for label in asked]
    answerable = np.array([bool(rows) for rows in answers])
    if not answerable.any():
        raise DataError("no query has a label that occurs in the database; both need the same class names")
    judged = [(row, rows) for row, rows in zip(ranked, answers, strict=True) if rows]
    right = known[ranked[:, 0]] == asked
    figures = {"mAP": 100 * float(np.mean([average_precision(*one) for one in judged]))}
    for k in ks:
        figures[f"recall@{k}"] = 100 * float(np.mean([recall_at(row, rows, k) for row, rows in judged]))
    kept = answerable
    return figures | {
        "accuracy": 100 * float(right[kept].mean()),
        "GAP": 100 * global_average_precision(similarity, right, answerable),
        "GAP-": 100 * global_average_precision(similarity[kept], right[kept], answerable[kept]),
    }


def read_truth(path: Path, images: Path, options: DecodeOptions) -> tuple[Listed, Listed, list[Truth]]:
    """Queries, database and truth of a JSON file with the fields of the published files.

    Raises:
        DataError: it is no such file, or an image is missing.
    """
    if path.suffix == ".pkl":
        raise DataError(f"{path}: is a pickle, which could run anything; write its content as JSON, and name that file")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names, asked, truth = content["imlist"], content["qimlist"], content["gnd"]
        truths = [Truth(*(tuple(map(int, one.get(name, ()))) for name in Truth._fields)) for one in truth]
        boxes = [[float(edge) for edge in one["bbx"]] for one in truth] if any("bbx" in one for one in truth) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is no ground truth with imlist, qimlist and gnd ({error!r})") from None
    if len(truths) != len(asked) or any(not 0 <= r < len(names) for one in truths for rows in one for r in rows):
        raise DataError(f"{path}: its gnd does not fit its qimlist and imlist")
    for name, box in zip(asked, boxes or (), strict=False):
        if not _is_box(box):
            raise DataError(f"{path}: bbx of {name} is {box}; left, top, right and bottom in pixels were wanted")
    return Listed(images, asked, boxes, options), Listed(images, names, None, options), truths


def _is_box(box: Sequence[float]) -> bool:
    if len(box) != 4 or not all(map(math.isfinite, box)):
        return False
    left, top, right, bottom = map(round, box)
    return left < right and top < bottom


def _labels(queries: ImageDataset, asked: Tensor, database: ImageDataset, known: Tensor) -> tuple[list[str], list[str]]:
    """Names of the classes of the images that could be read."""
    parts = []
    for dataset, rows in ((queries, asked), (database, known)):
        targets = dataset.targets
        if targets is None:
            raise DataError(f"{dataset.name}: has no labels; put images into one folder a class, or give ground truth")
        named = [dataset.classes[label] if dataset.classes else str(label) for label in np.asarray(targets).tolist()]
        parts.append([named[int(row)] for row in torch.as_tensor(rows)])
    return parts[0], parts[1]
