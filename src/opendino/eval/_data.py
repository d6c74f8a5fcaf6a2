# SPDX-License-Identifier: Apache-2.0
"""Which images and labels a protocol is run on: a labelled training part and a labelled held-out part.

Read next: `_features.py`.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from opendino.data.datasets import ImageDataset, open_dataset
from opendino.errors import ConfigError, DataError
from opendino.eval._features import FeatureConfig, Features, extract
from opendino.models.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class LabelledConfig:
    """Two parts of a labelled data set, each anything that `open_dataset` opens.

    Attributes:
        train: images that the protocol may learn from, with labels.
        val: held-out images that it is measured on, with labels.
        label_column: of a manifest or Parquet file; found by its name when empty.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; None where the file says it.
    """

    train: str = ""
    val: str = ""
    label_column: str = ""
    value_range: tuple[float, float] | None = None


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


def extract_pair(backbone: VisionTransformer, data: LabelledConfig, features: FeatureConfig) -> LabelledFeatures:
    """Open both parts and run them through a backbone; every process of a group calls it.

    Raises:
        ConfigError: as `open_pair`.
        DataError: as `open_pair`, or no image of a part can be read.
    """
    pair = open_pair(data, backbone.input_spec.channels)
    train = extract(backbone, pair.train, features, what=f"training images, {data.train}")
    val = extract(backbone, pair.val, features, what=f"held-out images, {data.val}")
    skipped = [*train.skipped, *val.skipped]
    counts = {"train_images": len(train), "val_images": len(val), "classes": len(pair.classes), "skipped": skipped}
    notes = (f"{len(skipped)} images could not be read and were left out",) if skipped else ()
    return LabelledFeatures(
        train, val, pair.train_labels[train.rows], pair.val_labels[val.rows], {**asdict(data), **counts}, notes
    )


def open_pair(config: LabelledConfig, channels: int = 3) -> LabelledPair:
    """Open both parts and bring their labels to one numbering.

    Class folders are numbered alphabetically within each part, so a class that is missing from one part shifts the
    numbers after it: classes are matched by name wherever both parts have names.

    Raises:
        ConfigError: a part is not named, or both are the same.
        DataError: a part has no labels, or `val` has a class that `train` lacks.
    """
    for name in ("train", "val"):
        if not getattr(config, name):
            raise ConfigError(f"data.{name} is missing: this protocol needs labelled images; give data.{name}=FOLDER")
    if config.train == config.val:
        raise ConfigError(
            f"data.train and data.val are both {config.train}: each image would find itself; give held-out images"
        )
    train, val = (
        open_dataset(source, channels=channels, value_range=config.value_range, label_column=config.label_column)
        for source in (config.train, config.val)
    )
    train_labels, val_labels = _labels(train, config.train), _labels(val, config.val)
    if train.classes and val.classes:
        val_labels = _renumber(val_labels, list(val.classes), list(train.classes), config)
        classes = tuple(train.classes)
    else:
        _check_numbers(train_labels, val_labels, config)
        classes = tuple(train.classes) or tuple(str(number) for number in range(int(train_labels.max()) + 1))
    return LabelledPair(train, val, classes, torch.from_numpy(train_labels), torch.from_numpy(val_labels))


def _labels(dataset: ImageDataset, source: str) -> np.ndarray:
    targets = dataset.targets
    if targets is None:
        raise DataError(
            f"{source}: has no labels, and this protocol needs them; put the images into one folder a class, "
            "or name them in a manifest with a column 'label'"
        )
    return np.asarray(targets, dtype=np.int64)


def _renumber(labels: np.ndarray, own: list[str], wanted: list[str], config: LabelledConfig) -> np.ndarray:
    number = {name: position for position, name in enumerate(wanted)}
    used = sorted(set(labels.tolist()))
    strangers = [own[label] for label in used if own[label] not in number]
    if strangers:
        raise DataError(
            f"{config.val}: class '{strangers[0]}' ({len(strangers)} such) is not among the {len(wanted)} classes of "
            f"{config.train}; both parts need the same class names"
        )
    table = np.full(len(own), -1, dtype=np.int64)
    table[used] = [number[own[label]] for label in used]
    return table[labels]


def _check_numbers(train: np.ndarray, val: np.ndarray, config: LabelledConfig) -> None:
    strangers = sorted(set(val.tolist()) - set(train.tolist()))
    if strangers:
        raise DataError(
            f"{config.val}: label {strangers[0]} does not occur in {config.train}; both need the same labels"
        )
    if int(train.min()) < 0:
        raise DataError(f"{config.train}: label {int(train.min())} is negative; labels count from 0")
