# SPDX-License-Identifier: Apache-2.0
"""Which images and labels a protocol is run on: a labelled training part and a labelled held-out part.

Read next: `_features.py`.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from opendino import config as settings
from opendino.data.datasets import ImageDataset, open_dataset
from opendino.distributed import is_main
from opendino.errors import ConfigError, DataError, ModelError
from opendino.eval._features import FeatureConfig, Features, extract, place
from opendino.eval._results import Results, describe
from opendino.eval.adapters import Backbone

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledConfig:
    """Two parts of a labelled data set, each anything that `open_dataset` opens.

    Attributes:
        train: images that the protocol may learn from, with labels.
        val: held-out images that it is measured on, with labels.
        path_column: column of paths in a manifest; found by its name when empty.
        image_column: column of image bytes in a Parquet file; found by its name when empty.
        label_column: of a manifest or Parquet file; found by its name when empty.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; None where the file says it.
        orient: whether the EXIF orientation is applied.
    """

    train: str = ""
    val: str = ""
    path_column: str = ""
    image_column: str = ""
    label_column: str = ""
    value_range: tuple[float, float] | None = None
    orient: bool = True


@dataclass(frozen=True)
class LabelledPair:
    """Two opened parts, whose labels count the same classes.

    Attributes:
        classes: names, position = label; numbers as text where the data has no names.
        train_labels: of each image of `train`, int64.
        val_labels: of each image of `val`, in the numbering of `train`.
    """

    train: ImageDataset
    val: ImageDataset
    classes: tuple[str, ...]
    train_labels: Int[Tensor, " n"]
    val_labels: Int[Tensor, " m"]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is said where a part has one class alone, as the first rows of a sorted table have."""
        parts = ((self.train, self.train_labels, "training"), (self.val, self.val_labels, "held-out"))
        return tuple(
            f"all labels of the {len(labels)} {what} images are the same ('{self.classes[int(labels[0])]}' in "
            f"{part.name}), and the figures say nothing: sorted by class? take rows at random"
            for part, labels, what in parts
            if len(labels.unique()) == 1
        )


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of both parts, with the labels of the images that could be read.

    Attributes:
        record: what the results say of the data.
        notes: sentences a reader of the figures should know.
    """

    train: Features
    val: Features
    train_labels: Int[Tensor, " n"]
    val_labels: Int[Tensor, " m"]
    record: dict[str, Any]
    notes: tuple[str, ...]


def extract_pair(
    backbone: Backbone, data: LabelledConfig, features: FeatureConfig, *, patches: bool = True
) -> LabelledFeatures:
    """Open both parts and run them through a backbone; every process of a group calls it. `patches` as for `extract`.

    Raises:
        ConfigError: as `open_pair`.
        DataError: as `open_pair`, or no image of a part can be read.
        ModelError: features that are not finite: no figure made of them would mean anything.
    """
    pair = open_pair(data, backbone.input_spec.channels)
    train = extract(backbone, pair.train, features, what=f"training images, {data.train}", patches=patches)
    val = extract(backbone, pair.val, features, what=f"held-out images, {data.val}", patches=patches)
    for part, dataset in ((train, pair.train), (val, pair.val)):
        _refuse_not_finite(part, dataset, features.precision)
    skipped = [*train.skipped, *val.skipped]
    counts = {"train_images": len(train), "val_images": len(val), "classes": len(pair.classes), "skipped": skipped}
    unread = (f"{len(skipped)} images could not be read and were left out",) if skipped else ()
    return LabelledFeatures(
        *(train, val, pair.train_labels[train.rows], pair.val_labels[val.rows], {**asdict(data), **counts}),
        notes=(*pair.notes, *unread),
    )


def _refuse_not_finite(features: Features, dataset: ImageDataset, precision: str) -> None:
    made = [part for part in (features.cls, features.patch_mean) if part is not None]
    bad = ~torch.cat(made, dim=1).isfinite().all(dim=1)
    if bool(bad.any()):
        first = [dataset.identify(int(row)) for row in features.rows[bad][:3]]
        raise ModelError(
            f"features of {int(bad.sum())} of {len(features)} images are not finite in {precision} ({', '.join(first)}"
            f"{', ...' if bad.sum() > len(first) else ''}): look at the weights, or try features.precision=fp32"
        )


@runtime_checkable
class PairConfig(Protocol):
    """Settings of a protocol that learns from frozen features of one part and is measured on those of another."""

    @property
    def data(self) -> LabelledConfig:
        """The two parts."""
        ...

    @property
    def features(self) -> FeatureConfig:
        """How they are embedded."""
        ...


def measure_pair(
    name: str,
    backbone: Backbone,
    config: PairConfig,
    evaluate: Callable[[LabelledFeatures], tuple[dict[str, float], list[str]]],
    *,
    patches: bool,
    out: Path | None,
    source: Mapping[str, object] | None,
) -> Results:
    """A protocol on the frozen features of a labelled pair; every process of a group calls it.

    Args:
        name: of the protocol.
        backbone: moved to `config.features.device`.
        config: of the protocol.
        evaluate: figures of the features, and notes on what had to be changed.
        patches: whether it takes mean patches too.
        out: folder for the JSON file, or None.
        source: where the model came from, for the record.

    Raises:
        ConfigError: a setting that does not fit the data.
        DataError: a part cannot be opened or has no labels.
    """
    start = time.perf_counter()
    place(backbone, config.features)
    pair = extract_pair(backbone, config.data, config.features, patches=patches)
    figures, notes = evaluate(pair)
    model, seconds = describe(backbone, source or {}), time.perf_counter() - start
    results = Results(name, figures, pair.record, model, settings.to_dict(config), seconds, (*pair.notes, *notes))
    if out is not None and is_main():
        results.write(out)
    return results


def open_pair(config: LabelledConfig, channels: int = 3) -> LabelledPair:
    """Open both parts and bring their labels to one numbering; warns of a part that has one class alone.

    Class folders are numbered alphabetically within each part, so a class that is missing from one part shifts the
    numbers after it: classes are matched by name wherever both parts have names.

    Raises:
        ConfigError: a part is not named, or both are the same.
        DataError: a part has no labels, or `val` has a class that `train` lacks.
    """
    for name in ("train", "val"):
        if not getattr(config, name):
            raise ConfigError(f"data.{name} is missing: this protocol needs labelled images; give data.{name}=FOLDER")
    if same_place(config.train, config.val):
        raise ConfigError(
            f"data.train = {config.train} and data.val = {config.val} are the same: each image would find itself; "
            "give held-out images"
        )
    pair = match(*(open_part(source, config, channels) for source in (config.train, config.val)))
    for note in pair.notes:
        _log.warning("%s", note)
    return pair


def same_place(first: str, second: str) -> bool:
    """Whether two sources are one file, folder or pattern, however they are spelled and whatever links lead there."""
    one, other = Path(first), Path(second)
    if one.resolve() == other.resolve():
        return True
    return one.exists() and other.exists() and one.samefile(other)


def open_part(source: str, config: LabelledConfig, channels: int) -> ImageDataset:
    """Open one part by the settings of both.

    Raises:
        DataError: there is nothing at `source`, or nothing in it that can be used.
    """
    return open_dataset(
        source,
        channels=channels,
        value_range=config.value_range,
        orient=config.orient,
        path_column=config.path_column,
        image_column=config.image_column,
        label_column=config.label_column,
    )


def match(train: ImageDataset, val: ImageDataset) -> LabelledPair:
    """Two opened parts with their labels in one numbering; see `open_pair`.

    Raises:
        DataError: a part has no labels, or `val` has a class that `train` lacks.
    """
    train_labels, val_labels = _labels(train), _labels(val)
    if train.classes and val.classes:
        val_labels = _renumber(val_labels, train, val)
        classes = tuple(train.classes)
    else:
        _check_numbers(train_labels, val_labels, train, val)
        classes = tuple(train.classes) or tuple(str(number) for number in range(int(train_labels.max()) + 1))
    return LabelledPair(train, val, classes, torch.from_numpy(train_labels), torch.from_numpy(val_labels))


def _labels(dataset: ImageDataset) -> np.ndarray:
    targets = dataset.targets
    if targets is None:
        raise DataError(
            f"{dataset.name}: has no labels of two or more classes, and this protocol needs them; put the images into "
            "one folder a class, or name them in a manifest with a column 'label'"
        )
    return np.array(targets, dtype=np.int64)


def _renumber(labels: np.ndarray, train: ImageDataset, val: ImageDataset) -> np.ndarray:
    own, number = val.classes, {name: position for position, name in enumerate(train.classes)}
    used = sorted(set(labels.tolist()))
    strangers = [own[label] for label in used if own[label] not in number]
    if strangers:
        raise DataError(
            f"{val.name}: class '{strangers[0]}' ({len(strangers)} such) is not among the {len(number)} classes of "
            f"{train.name}; both parts need the same class names"
        )
    table = np.full(len(own), -1, dtype=np.int64)
    table[used] = [number[own[label]] for label in used]
    return table[labels]


def _check_numbers(train_labels: np.ndarray, val_labels: np.ndarray, train: ImageDataset, val: ImageDataset) -> None:
    strangers = sorted(set(val_labels.tolist()) - set(train_labels.tolist()))
    if strangers:
        raise DataError(f"{val.name}: label {strangers[0]} does not occur in {train.name}; both need the same labels")
    if int(train_labels.min()) < 0:
        raise DataError(f"{train.name}: label {int(train_labels.min())} is negative; labels count from 0")
