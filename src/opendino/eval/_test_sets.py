# SPDX-License-Identifier: Apache-2.0
"""Further test sets of a trained classifier: shifted images, other classes' subsets, several right answers an image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opendino.data.datasets import ImageDataset
from opendino.errors import ConfigError, DataError
from opendino.eval import _metrics
from opendino.eval._data import LabelledConfig, match, open_part


@dataclass(frozen=True)
class TestSetsConfig:
    """Labelled images on which the chosen classifier is measured once more.

    Attributes:
        sources: anything that `open_dataset` opens; classes are matched by name.
        class_mappings: for each source a `.npy` file that gives the training class of each of its classes, so that only
            those compete; empty where names match.
        real: JSON list of right answers for each image of `data.val`.
    """

    __test__ = False  # pytest looks for names that begin with Test

    sources: tuple[str, ...] = ()
    class_mappings: tuple[str, ...] = ()
    real: str = ""

    def __post_init__(self) -> None:
        if self.class_mappings and len(self.class_mappings) != len(self.sources):
            raise ConfigError(
                f"tests.class_mappings names {len(self.class_mappings)} files for {len(self.sources)} sources; "
                "give one for each, '' where names match"
            )


Classify = Callable[[ImageDataset, str], tuple[Float[Tensor, "n K"], Tensor]]
"""Logits of a data set's readable images, and their rows; the second argument names it for people."""


def measure(
    config: TestSetsConfig, data: LabelledConfig, train: ImageDataset, channels: int, classify: Classify
) -> dict[str, float]:
    """Accuracies on every source, named `NAME_top1` and so on.

    Args:
        config: sources.
        data: columns and decoding, as for the training images.
        train: the training images, whose classes the logits count.
        channels: of the model's images.
        classify: the trained classifier.

    Raises:
        DataError: a source cannot be opened, has no labels, or labels that do not fit.
    """
    figures: dict[str, float] = {}
    names = _names(config.sources)
    for position, source in enumerate(config.sources):
        mapping_file = config.class_mappings[position] if config.class_mappings else ""
        test = open_part(source, data, channels)
        logits, rows = classify(test, f"test images, {source}")
        if mapping_file:
            labels = _own_labels(test)[rows]
            mapping = _metrics.read_class_mapping(mapping_file, logits.shape[1])
            if int(labels.max()) >= len(mapping):
                raise DataError(
                    f"{mapping_file}: maps {len(mapping)} classes, and {source} has label {int(labels.max())}"
                )
            logits = logits[:, mapping]
        else:
            labels = match(train, test).val_labels[rows]
        figures |= prefixed(names[position], _metrics.accuracies(logits, labels))
    return figures


def real_figure(path: str, val: ImageDataset, predicted: Tensor, rows: Tensor) -> dict[str, float]:
    """ReaL accuracy of predictions for rows of the held-out images; empty without a file."""
    if not path:
        return {}
    answers = _metrics.read_real(path, [val.identify(row) for row in range(len(val))])
    return {"real": _metrics.real(predicted, answers[rows])}


def prefixed(name: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Figures under the name of what they were measured on."""
    return {f"{name}_{figure}": value for figure, value in figures.items()}


def _names(sources: Sequence[str]) -> list[str]:
    stems = [Path(source.rstrip("/")).stem for source in sources]
    return [stem if stems.count(stem) == 1 else f"{stem}{number}" for number, stem in enumerate(stems)]


def _own_labels(test: ImageDataset) -> Tensor:
    if test.targets is None:
        raise DataError(f"{test.name}: has no labels, and this protocol needs them; put images into one folder a class")
    return torch.from_numpy(np.array(test.targets, dtype=np.int64))
