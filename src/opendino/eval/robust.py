# SPDX-License-Identifier: Apache-2.0
"""Robustness: a linear classifier of clean images, measured on corrupted ones and on shifted test sets.

The classifier is the best of the `linear` protocol's grid. Each kind of corruption gives the mean error over its
severities; `mean_error` is the mean over kinds, and `mCE` the same relative to AlexNet's published errors, which says
something for ImageNet at 224 pixels only. Shifted test sets are `tests.sources`, with class mappings where they need
them.

Read next: `_corruptions.py`, `linear.py`.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from opendino import config as settings
from opendino.data.datasets import ImageDataset
from opendino.data.decode import Decoded
from opendino.data.transforms import EvalTransform, centre, shorter_side_to
from opendino.distributed import is_main
from opendino.errors import ConfigError, DataError
from opendino.eval import _metrics
from opendino.eval._corruptions import ALEXNET_ERROR, KINDS, corrupt
from opendino.eval._data import LabelledConfig, open_pair
from opendino.eval._features import FeatureConfig, extract, place, transform_of
from opendino.eval._results import Results, describe
from opendino.eval._test_sets import TestSetsConfig, measure
from opendino.eval.adapters import Backbone
from opendino.eval.linear import HeadsConfig, LinearConfig, tokens_of_features, train


@dataclass(frozen=True)
class CorruptionConfig:
    """Which corruptions.

    Attributes:
        kinds: names of `_corruptions.KINDS`; empty takes all fifteen.
        severities: 1 (slight) to 5.
        seed: of everything random in them.
    """

    kinds: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    seed: int = 0

    def __post_init__(self) -> None:
        strangers = [kind for kind in self.kinds if kind not in KINDS]
        if strangers or not self.severities or not set(self.severities) <= {1, 2, 3, 4, 5}:
            raise ConfigError(
                f"robust.kinds = {list(self.kinds)}, robust.severities = {list(self.severities)}: choose from "
                f"{', '.join(KINDS)}, and from 1 to 5"
            )


@dataclass(frozen=True)
class RobustConfig:
    """Settings of `opendino eval robust`."""

    data: LabelledConfig = field(default_factory=LabelledConfig)
    robust: CorruptionConfig = field(default_factory=CorruptionConfig)
    linear: HeadsConfig = field(default_factory=HeadsConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    tests: TestSetsConfig = field(default_factory=TestSetsConfig)


class Corrupted(ImageDataset):
    """A data set as the model frames it, corrupted.

    Args:
        dataset: colour photographs.
        transform: whose resizing and cutting come first, as in the published sets.
        kind: of corruption.
        severity: 1 to 5.
        seed: of the random ones.
    """

    def __init__(self, dataset: ImageDataset, transform: EvalTransform, kind: str, severity: int, seed: int) -> None:
        self._dataset, self._transform, self._how = dataset, transform, (kind, severity, seed)
        self.name, self.options, self.classes = dataset.name, dataset.options, dataset.classes
        self.targets = dataset.targets

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> bytes | Path:
        """The encoded image, as it is."""
        return self._dataset.read(index)

    def identify(self, index: int) -> str:
        """The image's name."""
        return self._dataset.identify(index)

    def image(self, index: int) -> Decoded:
        """The corrupted image, of the size that the model takes.

        Raises:
            DataError: it cannot be read, or is no photograph of 8 bits.
        """
        image = self._dataset.image(index)
        if not isinstance(image, Image.Image):
            raise DataError(f"{self.identify(index)}: corruptions are for photographs of 8 bits")
        height, width = shorter_side_to((image.height, image.width), self._transform.resize)
        framed = centre(image.resize((width, height), Image.Resampling.BICUBIC), self._transform.size)
        if not isinstance(framed, Image.Image):
            raise DataError(f"{self.identify(index)}: corruptions are for photographs of 8 bits")
        kind, severity, seed = self._how
        return corrupt(framed, kind, severity, seed * 1_000_003 + index)


def run(
    backbone: Backbone,
    config: RobustConfig,
    *,
    out: Path | None = None,
    source: Mapping[str, object] | None = None,
) -> Results:
    """Train the classifier on clean images, measure it on others; every process of a group calls it.

    Args:
        backbone: moved to `config.features.device`; of three channels.
        config: data, corruptions, classifier and features.
        out: folder for the JSON file, or None.
        source: where the model came from, for the record.

    Raises:
        ConfigError: a setting that does not fit, or a model of other than three channels.
        DataError: images that cannot be used.
    """
    start = time.perf_counter()
    place(backbone, config.features)
    if backbone.input_spec.channels != 3:
        raise ConfigError(
            f"robust: corruptions are for colour images, this model takes {backbone.input_spec.channels} channels"
        )
    pair, model = open_pair(config.data), describe(backbone, source or {})
    linear = LinearConfig(config.data, config.linear, config.features)
    heads, notes = train(backbone, pair, linear, out, str(model["sha256"]))
    blocks = min(max(config.linear.blocks), backbone.depth)

    def seen(dataset: ImageDataset, what: str, features: FeatureConfig = config.features) -> tuple[Tensor, Tensor]:
        found = extract(backbone, dataset, features, what=what, blocks=blocks)
        return tokens_of_features(found), found.rows

    tokens, rows = seen(pair.val, f"held-out images, {config.data.val}")
    labels = pair.val_labels[rows]
    scores = [_metrics.topk(_metrics.ranking(heads.logits(tokens, i), 1), labels, 1) for i in range(len(heads.names()))]
    best = int(np.argmax(scores))
    figures = {"clean_top1": scores[best]}
    # What is corrupted has the files of the clean images: their features must not be taken for it.
    plain = replace(config.features, cache="")
    transform, errors = transform_of(backbone, config.features), {}
    for kind in config.robust.kinds or tuple(KINDS):
        found = []
        for severity in config.robust.severities:
            dataset = Corrupted(pair.val, transform, kind, severity, config.robust.seed)
            tokens, rows = seen(dataset, f"{kind} {severity}", plain)
            right = heads.logits(tokens, best).argmax(dim=1) == pair.val_labels[rows]
            found.append(100 - 100 * float(right.double().mean()))
        errors[kind] = float(np.mean(found))
        figures[f"error_{kind}"] = errors[kind]
    figures["mean_error"] = float(np.mean(list(errors.values())))
    figures["mCE"] = 100 * float(np.mean([error / ALEXNET_ERROR[kind] for kind, error in errors.items()]))

    def logits_of(dataset: ImageDataset, what: str) -> tuple[Tensor, Tensor]:
        tokens, rows = seen(dataset, what)
        return heads.logits(tokens, best), rows

    figures |= measure(config.tests, config.data, pair.train, 3, logits_of)
    record: dict[str, Any] = {**settings.to_dict(config.data), "best": heads.names()[best], "val_images": len(labels)}
    notes = [*notes, "corruptions are our own; compare models measured here, not with published ImageNet-C tables"]
    seconds = time.perf_counter() - start
    results = Results("robust", figures, record, model, settings.to_dict(config), seconds, tuple(notes))
    if out is not None and is_main():
        results.write(out)
    return results
