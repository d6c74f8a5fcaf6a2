# SPDX-License-Identifier: Apache-2.0
"""Accuracies, all in percent: top-k, mean per class, and hits among several right answers (ReaL)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from opendino.data.decode import read_npy
from opendino.errors import DataError

_NUMBERED = re.compile(r"_val_(\d{8})\.")


def accuracies(logits: Float[Tensor, "m K"], labels: Int[Tensor, " m"]) -> dict[str, float]:
    """`top1`, `mean_per_class` and, with more than five classes, `top5`, in percent.

    Args:
        logits: larger is more likely.
        labels: from 0; a class without an image does not count in the mean over classes.
    """
    best = ranking(logits, 5)
    figures = {"top1": topk(best, labels, 1), "mean_per_class": mean_per_class(best[:, 0], labels)}
    return figures | ({"top5": topk(best, labels, 5)} if logits.shape[1] > 5 else {})


def ranking(logits: Float[Tensor, "m K"], k: int) -> Int[Tensor, "m k"]:
    """The k likeliest classes, best first; a tie goes to the smaller number."""
    return logits.argsort(dim=1, descending=True, stable=True)[:, :k]


def topk(best: Int[Tensor, "m top"], labels: Int[Tensor, " m"], k: int) -> float:
    """Share of images whose class is among the k best, in percent."""
    return 100 * float((best[:, :k] == labels[:, None]).any(dim=1).double().mean())


def per_class(predicted: Int[Tensor, " m"], labels: Int[Tensor, " m"]) -> dict[int, float]:
    """Accuracy of each class that has images, in percent."""
    hits = (predicted == labels).double()
    return {int(c): 100 * float(hits[labels == c].mean()) for c in labels.unique()}


def mean_per_class(predicted: Int[Tensor, " m"], labels: Int[Tensor, " m"]) -> float:
    """Mean over classes of the accuracy of each, in percent: rare classes count as much as common ones."""
    return float(np.mean(list(per_class(predicted, labels).values())))


def real(predicted: Int[Tensor, " m"], answers: Int[Tensor, "m r"]) -> float:
    """Share of images whose prediction is one of several right answers, in percent.

    Args:
        predicted: classes.
        answers: padded with -1; an image without any answer does not count.

    Source: Beyer et al. 2020, "Are we done with ImageNet?"; official `eval/metrics.py`, imagenet_real_accuracy.
    """
    counted = (answers >= 0).any(dim=1)
    hits = (answers == predicted[:, None]).any(dim=1)
    return 100 * float(hits[counted].double().mean())


def read_real(path: Path | str, names: Sequence[str]) -> Int[Tensor, "m r"]:
    """Right answers of images from a JSON list of lists, padded with -1.

    Args:
        path: such as the published `real.json`, one list for each validation image of ImageNet in order of its number.
        names: of the images; those called `..._val_00000001.JPEG` take the list of their number, else the order counts.

    Raises:
        DataError: the file is no such list, or has no list for an image.
    """
    try:
        lists = json.loads(Path(path).read_text(encoding="utf-8"))
        found = [_NUMBERED.search(name) for name in names]
        rows = [int(match.group(1)) - 1 for match in found if match]
        rows = rows if len(rows) == len(names) else list(range(len(names)))
        if not isinstance(lists, list) or max(rows, default=0) >= len(lists):
            raise DataError(f"{path}: has {len(lists)} lists of answers for {len(names)} images; give one for each")
        chosen = [[int(answer) for answer in lists[row]] for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: is not a JSON list of lists of classes ({error})") from None
    padded = torch.full((len(chosen), max(map(len, chosen), default=1) or 1), -1, dtype=torch.int64)
    for row, answers in enumerate(chosen):
        padded[row, : len(answers)] = torch.tensor(answers, dtype=torch.int64)
    return padded


def read_class_mapping(path: Path | str, classes: int) -> Int[Tensor, " t"]:
    """Training class of each class of a test set, from a `.npy` file of integers.

    Raises:
        DataError: the file is no such list, or names a class that does not exist.
    """
    try:
        mapping = read_npy(Path(path).read_bytes())
    except (OSError, ValueError, DataError) as error:
        raise DataError(f"{path}: cannot be read as a .npy list of classes ({error})") from None
    if mapping.ndim != 1 or mapping.dtype.kind not in "iu" or len(mapping) == 0:
        raise DataError(f"{path}: holds {mapping.dtype} of shape {mapping.shape}; one integer a class was wanted")
    if int(mapping.min()) < 0 or int(mapping.max()) >= classes:
        stranger = int(mapping.min() if int(mapping.min()) < 0 else mapping.max())
        raise DataError(f"{path}: names class {stranger}; the training images have classes 0 to {classes - 1}")
    return torch.from_numpy(mapping.astype(np.int64))
