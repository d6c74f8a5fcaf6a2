# SPDX-License-Identifier: Apache-2.0
"""A look at the teacher while it trains: k-NN and a linear classifier where there are labels, health figures always.

Training never sees a label. Where no held-out images are named, the labelled images are split by a fixed permutation:
the probe's queries are a fifth of them (at most `max_val`), its bank the others. All of them are also trained on,
without their labels; so the figures are for following a run, and `opendino eval` on a test set is for reporting. Labels
never reach the networks: the classifiers see features that were computed without gradient.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from opendino.config import expand_home
from opendino.data.datasets import ImageDataset
from opendino.data.rows import Rows
from opendino.data.samplers import permute
from opendino.errors import ConfigError, DataError
from opendino.eval import _ridge, health, knn
from opendino.eval._data import LabelledConfig, match, open_part, same_place
from opendino.eval._features import FeatureConfig, FeatureKind, extract
from opendino.eval._sampled import sampled
from opendino.methods.method import Method
from opendino.models.vision_transformer import VisionTransformer

_SPLIT_SEED = 0  # the same split in every run, so that runs can be compared
_FIGURES = ("knn/", "linear/", "health/")
_SAMPLED, _VIEWS = 64, 4  # images whose patches and random views are looked at
_LEAST = 20  # images below which a k-NN figure says nothing


@dataclass(frozen=True)
class ProbeConfig:
    """When and on what the teacher is looked at while it trains; none of it changes what is learned.

    Attributes:
        every: steps between two looks; 0 looks never. The untrained teacher and the last step are looked at too.
        share: most of a run's time that looks of all kinds may come to; one of this kind that is due is left out where
            it would pass that, but for the first and the last. 1 leaves none out.
        train: labelled images that vote; empty for the run's own data.
        val: labelled images that are classified; empty holds some of `train` out.
        k: numbers of neighbours.
        temperature: of the votes.
        feature: CLS, mean of the patches, or both side by side.
        linear: fit a linear classifier too, by least squares (`eval/_ridge.py`).
        max_train: most images that vote.
        max_val: most images that are classified.
    """

    every: int = 0
    share: float = 1.0
    train: str = ""
    val: str = ""
    k: tuple[int, ...] = (20,)
    temperature: float = 0.07
    feature: FeatureKind = "cls"
    linear: bool = True
    max_train: int = 10_000
    max_val: int = 2_000

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            object.__setattr__(self, name, expand_home(getattr(self, name)))
        if self.every < 0 or self.max_train < 1 or self.max_val < 2:
            raise ConfigError(
                f"knn.every = {self.every}, knn.max_train = {self.max_train}, knn.max_val = {self.max_val}: "
                "use 0 or more steps, and 2 or more images"
            )
        if not 0 < self.share <= 1:
            raise ConfigError(f"knn.share = {self.share}: use a share above 0 and up to 1, such as 0.05")
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"knn.k = {list(self.k)}: give at least one number of neighbours, each 1 or more")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"knn.temperature = {self.temperature}: give a positive number, published is 0.07")


def last_look(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Figures of the last look at the teacher among a run's records, None if not finite; empty where there was none."""
    for record in reversed(records):
        look = {key: value for key, value in record.items() if key.startswith(_FIGURES)}
        if look:
            return look
    return {}


class Probe:
    """Measures a teacher on fixed images.

    Args:
        config: which images, how many.
        dataset: of the run, with its number of channels.
        device: of the teacher.
        precision: of the run.
        batch_size: images of a forward pass.

    Attributes:
        note: what is measured, in a sentence.

    Raises:
        ConfigError: labels are asked for where there are none.
        DataError: named images cannot be opened.
    """

    def __init__(
        self, config: ProbeConfig, dataset: ImageDataset, device: torch.device, precision: str, batch_size: int = 64
    ) -> None:
        self.config = config
        self._features = FeatureConfig(
            batch_size=batch_size,
            workers=0,
            precision="bf16" if precision == "bf16" else "fp32",
            device=str(device),
            progress=False,
        )
        train, val = _parts(config, dataset)
        self._val, self._train, self.note = val, train, _note(train, val, config)
        if train is not None:
            self._votes = knn.VoteConfig(
                k=tuple(k for k in config.k if k <= len(train)) or (len(train),),
                temperature=config.temperature,
                feature=config.feature,
            )

    def __call__(self, method: Method, teacher_temp: float) -> dict[str, float]:
        """Figures of a method's teacher, `knn/...`, `linear/...` and `health/...`; its networks are left as they are.

        Args:
            method: its teacher has a "backbone", and prototypes if it has a "dino_head".
            teacher_temp: temperature of the prototype probabilities.
        """
        backbone = cast("VisionTransformer", method.teacher["backbone"])
        patches = self._train is not None and self.config.feature != "cls"
        val = extract(backbone, self._val, self._features, what="probe", patches=patches)
        figures = health.summary(
            val.cls, _probabilities(method, val.cls, teacher_temp), prototypes=prototypes_of(method.teacher)
        )
        figures |= sampled(backbone, self._val, self._features, images=_SAMPLED, views=_VIEWS)
        record = {f"health/{name}": value for name, value in figures.items()}
        if self._train is None:
            return record
        train = extract(backbone, self._train, self._features, what="probe", patches=patches)
        labels, wanted = _labels(self._train, train.rows), _labels(self._val, val.rows)
        accuracy, _ = knn.evaluate(
            train.select(self.config.feature, normalize=True),
            labels,
            val.select(self.config.feature, normalize=True),
            wanted,
            self._votes,
            device=self._features.device,
        )
        found = {f"knn/{name}": value for name, value in accuracy.items()}
        if self.config.linear:
            kind, classes = self.config.feature, 1 + int(torch.cat([labels, wanted]).max())
            x, y = train.select(kind, normalize=False), val.select(kind, normalize=False)
            predicted = _ridge.fit(x.to(self._features.device), labels, classes).predict(y).cpu()
            found["linear/top1"] = 100 * float((predicted == wanted).double().mean())
        return found | record


def _parts(config: ProbeConfig, dataset: ImageDataset) -> tuple[ImageDataset | None, ImageDataset]:
    """Images that vote (None without labels) and images that are looked at, labels in one numbering."""
    named = _named(config, dataset)
    # Opened again only where the run looks away from the labels of its own images.
    ours = not config.train or (dataset.targets is not None and same_place(config.train, dataset.name))
    whole = dataset if ours else open_part(config.train, named, dataset.options.channels)
    if config.train and whole.targets is None:
        raise ConfigError(f"knn.train = {config.train} has no labels; name labelled images")
    if config.val:
        if same_place(named.train, config.val):
            raise ConfigError(
                f"knn.val = {config.val} and {'knn.train' if config.train else 'data'} = {named.train} are the same: "
                "each image would find itself; give held-out images, or none to hold some out"
            )
        pair = match(whole, open_part(config.val, named, dataset.options.channels))
        return (
            _some(Rows(pair.train, np.arange(len(pair.train)), pair.train_labels.numpy()), config.max_train),
            _some(Rows(pair.val, np.arange(len(pair.val)), pair.val_labels.numpy()), config.max_val),
        )
    order = permute(np.arange(len(whole)), len(whole), _SPLIT_SEED, 0)
    held_out = min(config.max_val, max(len(whole) // 5, 2))
    val = Rows(whole, np.sort(order[:held_out]))
    if whole.targets is None or len(whole) < _LEAST:
        return None, val
    return Rows(whole, np.sort(order[held_out : held_out + config.max_train])), val


def _named(config: ProbeConfig, dataset: ImageDataset) -> LabelledConfig:
    """The named images, read as those of the run."""
    options, columns = dataset.options, dict(dataset.columns)
    # A run that leaves its own labels alone says nothing of images that are named for theirs.
    if columns.get("label_column") == "none":
        columns["label_column"] = ""
    return LabelledConfig(
        config.train or dataset.name,
        config.val,
        value_range=options.value_range,
        orient=options.orient,
        **columns,
    )


def _some(part: "Rows", most: int) -> "Rows":
    if len(part) <= most:
        return part
    rows = np.sort(permute(np.arange(len(part)), len(part), _SPLIT_SEED, 0)[:most])
    return Rows(part, rows)


def _note(train: ImageDataset | None, val: ImageDataset, config: ProbeConfig) -> str:
    if train is None:
        return f"health of {len(val)} images; no labels, so no k-NN"
    kind = "named images" if config.val else "images held out from them (trained on, without labels)"
    how = "k-NN and a linear classifier" if config.linear else "k-NN"
    return f"{how} of {len(val)} {kind}, by {len(train)} others"


def _labels(dataset: ImageDataset, rows: Tensor) -> Tensor:
    targets = dataset.targets
    if targets is None:
        raise DataError(f"{dataset.name}: has no labels")
    return torch.from_numpy(np.ascontiguousarray(targets))[rows]


def prototypes_of(teacher: nn.ModuleDict) -> Tensor | None:
    """Weights of the prototypes, a row each; None where there are none."""
    return teacher.get_parameter("dino_head.last_layer.weight_v").detach() if "dino_head" in teacher else None


@torch.no_grad()
def _probabilities(method: Method, cls: Tensor, temp: float) -> Tensor | None:
    if "dino_head" not in method.teacher:
        return None
    head = method.teacher["dino_head"]
    device = next(head.parameters()).device
    return torch.cat([method.probabilities(head(part.to(device)), temp).cpu() for part in cls.split(256)])
