# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation on frozen patch features: a linear head, its multi-scale form, or nearest patches.

`linear` is batch normalisation and a 1x1 convolution on the last layer. `ms` takes the last four layers, larger crops,
and averages over scales and flips when it predicts. `knn` learns nothing: patches of training images vote. The head's
logits are enlarged to the pixels; images are padded to the patch, never cut.

Read next: `_segmenter.py`, `_dense.py`, `_segmentation.py`, `_pixel_data.py` (the layouts).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from opendino import config as settings
from opendino.data.datasets import DecodeOptions
from opendino.distributed import all_reduce_sum, is_main, rank, world_size
from opendino.errors import ConfigError, DataError
from opendino.eval._dense import agree, evaluating, load_head
from opendino.eval._features import FeatureConfig, place
from opendino.eval._masked import Masked, MaskedConfig
from opendino.eval._pixel_data import guess, open_pairs
from opendino.eval._results import Results, describe
from opendino.eval._segmentation import class_iou, confusion, figures
from opendino.eval._segmenter import HeadConfig, Linear, Neighbours, Segmenter
from opendino.eval.adapters import Backbone
from opendino.files import save_tensors, write_whole

_CLASSES = {"ade20k": 150, "voc": 21, "cityscapes": 19}


@dataclass(frozen=True)
class SegmentConfig:
    """Settings of `opendino eval segment`."""

    data: MaskedConfig = field(default_factory=MaskedConfig)
    segment: HeadConfig = field(default_factory=HeadConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)


def run(
    backbone: Backbone,
    config: SegmentConfig,
    *,
    out: Path | None = None,
    source: Mapping[str, object] | None = None,
) -> Results:
    """Train a head (or read it, or vote), predict the held-out images, count; every process of a group calls it.

    Every process trains the same head, and predicts with that of the main one; the held-out images are shared out.

    Args:
        backbone: moved to `config.features.device`; not trained.
        config: data, head and features.
        out: folder for the JSON file and the head, or None.
        source: where the model came from, for the record.

    Raises:
        ConfigError: a setting that does not fit.
        DataError: images or masks that cannot be used.
        ModelError: the backbone has no such layers.
    """
    start = time.perf_counter()
    place(backbone, config.features)
    train, val, classes = open_parts(config, backbone.input_spec.channels)
    segmenter = make(backbone, config, train, classes)
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    with evaluating(backbone), torch.no_grad():
        for index in range(rank(), len(val), world_size()):
            image, mask = val.both(index)
            predicted = segmenter.predict(image, mask.shape)
            matrix += confusion(predicted, torch.from_numpy(mask), classes)
    matrix = all_reduce_sum(matrix.to(next(backbone.parameters()).device)).cpu()
    data = {
        **settings.to_dict(config.data),
        "train_images": 0 if train is None else len(train),
        "val_images": len(val),
        "classes": classes,
        "class_iou": class_iou(matrix),
    }
    seconds, model = time.perf_counter() - start, describe(backbone, source or {})
    results = Results("segment", figures(matrix), data, model, settings.to_dict(config), seconds)
    if out is not None and is_main():
        path = results.write(out)
        if isinstance(segmenter, Linear):
            state = {name: tensor.cpu().contiguous() for name, tensor in segmenter.head.state_dict().items()}
            write_whole(path.with_suffix(".safetensors"), lambda file: save_tensors(state, file), error=ConfigError)
    return results


def open_parts(config: SegmentConfig, channels: int) -> tuple[Masked | None, Masked, int]:
    """Training part (None where nothing is learned), held-out part, and the number of classes.

    Raises:
        ConfigError: a part is not named.
        DataError: a part cannot be opened.
    """
    data, learns = config.data, not config.segment.weights
    for name in ("train", "val") if learns else ("val",):
        if not getattr(data, name):
            raise ConfigError(f"data.{name} is missing: segmentation needs images with masks; give data.{name}=FOLDER")
    options = DecodeOptions(channels, data.orient, data.value_range)
    parts = {name: open_pairs(getattr(data, name), name, data.layout, options) for name in ("train", "val")
             if getattr(data, name) and (learns or name == "val")}  # fmt: skip
    layout = data.layout or guess(Path(data.val))
    train = Masked(parts["train"], data, layout) if learns else None
    classes = data.classes or _CLASSES.get(layout)
    if classes is None:
        if train is None:
            raise ConfigError(
                "data.classes is missing: a trained head is read, and nothing says how many classes it has"
            )
        classes = 1 + max(int(train.mask(index).max()) for index in range(len(train)))
        if classes < 2:
            found = "one class" if classes else "no class that counts"
            raise DataError(
                f"{data.train}: its masks have {found}, and two or more were wanted; see data.ignore and "
                "data.reduce_zero, or set data.classes"
            )
    if train is not None:
        train.classes = classes
    return train, Masked(parts["val"], data, layout, classes), classes


def make(backbone: Backbone, config: SegmentConfig, train: Masked | None, classes: int) -> Segmenter:
    """What predicts: a bank of patches, a head that was read, or one that is trained here."""
    if config.segment.head == "knn":
        if train is None:
            raise ConfigError("data.train is missing: patches of training images vote")
        return Neighbours(backbone, config.segment, config.features, train, classes)
    linear = Linear(backbone, config.segment, config.features, classes)
    if config.segment.weights:
        load_head(linear.head, config.segment.weights)
    elif train is not None:
        linear.learn(train)
        agree(linear.head)
    linear.head.eval()
    return linear
