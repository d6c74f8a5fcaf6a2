# SPDX-License-Identifier: Apache-2.0
"""Linear classifiers on frozen features by the published protocol: a grid of heads on one pass of the backbone.

52 heads learn at once, one for each of 13 learning rates, of CLS of the last 1 or 4 blocks, and of with or without the
mean patch. The one that is best on the held-out images is reported, and measured on the further test sets. Training
images are cropped and flipped at random, so each step runs the backbone; `linear.augment=false` learns from the
features of centre crops, which are computed once (and kept): minutes where the other takes hours.

Read next: `_linear_heads.py` (the heads), `_features.py`, `_test_sets.py`.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from opendino import config as settings
from opendino.data.crops import DRAWS, cut, flip, random_box, resize, size_of
from opendino.data.datasets import ImageDataset
from opendino.data.decode import match_channels
from opendino.data.samplers import permute
from opendino.data.transforms import EvalTransform
from opendino.distributed import barrier, is_main, rank, world_size
from opendino.errors import ConfigError, DataError
from opendino.eval import _metrics
from opendino.eval._data import LabelledConfig, LabelledPair, open_pair
from opendino.eval._features import FeatureConfig, Features, cores, extract, place, tokens_of, transform_of
from opendino.eval._linear_heads import Heads, Kind
from opendino.eval._pace import Pace
from opendino.eval._results import Results, describe
from opendino.eval._test_sets import TestSetsConfig, measure, real_figure
from opendino.eval.adapters import Backbone
from opendino.files import save_tensors, write_whole
from opendino.optim.schedules import cosine

_log = logging.getLogger(__name__)
_REFERENCE_BATCH = 256
_CROP_SCALE, _CROP_ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class HeadsConfig:
    """How heads are trained.

    Attributes:
        lrs: learning rates at a batch of 256; the rates used are scaled to the batch.
        blocks: of how many of the last blocks a head sees CLS; more than the model has count as all.
        mean_patch: without and with the mean patch of the last block.
        iterations: steps; published are 10 epochs of 1,250.
        batch_size: images a step over all processes; published is 128 on each of 8 GPUs.
        momentum: of SGD.
        weight_decay: of SGD.
        augment: random crops and flips; false learns from centre crops, whose features are computed once.
        every: steps between two checkpoints, from which the same command goes on; 0 keeps none.
        seed: of weights, order and crops.

    Source: official `eval/linear.py`; paper, section 7.1.
    """

    lrs: tuple[float, ...] = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    blocks: tuple[int, ...] = (1, 4)
    mean_patch: tuple[bool, ...] = (False, True)
    iterations: int = 12_500
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 0.0
    augment: bool = True
    every: int = 1250
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.lrs and self.blocks and self.mean_patch) or min(self.lrs) <= 0 or min(self.blocks) < 1:
            raise ConfigError(
                "linear.lrs, linear.blocks and linear.mean_patch: give at least one positive value of each"
            )
        if min(self.iterations, self.batch_size) < 1 or self.every < 0:
            raise ConfigError(
                f"linear.iterations = {self.iterations}, linear.batch_size = {self.batch_size}, linear.every = "
                f"{self.every}: give 1 or more steps and images, and 0 or more steps between checkpoints"
            )


@dataclass(frozen=True)
class LinearConfig:
    """Settings of `opendino eval linear`."""

    data: LabelledConfig = field(default_factory=LabelledConfig)
    linear: HeadsConfig = field(default_factory=HeadsConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    tests: TestSetsConfig = field(default_factory=TestSetsConfig)


def run(
    backbone: Backbone,
    config: LinearConfig,
    *,
    out: Path | None = None,
    source: Mapping[str, object] | None = None,
) -> Results:
    """Train the heads and measure the best; every process of a group calls it.

    Args:
        backbone: moved to `config.features.device`; not trained.
        config: data, heads and features.
        out: folder for the JSON file, the checkpoint and the best head, or None.
        source: where the model came from, for the record.

    Raises:
        ConfigError: a setting that does not fit the data.
        DataError: a part cannot be opened, or has no labels.
    """
    start = time.perf_counter()
    place(backbone, config.features)
    pair = open_pair(config.data, backbone.input_spec.channels)
    blocks = min(max(config.linear.blocks), backbone.depth)
    model = describe(backbone, source or {})
    heads, notes = train(backbone, pair, config, out, str(model["sha256"]))

    def classify(dataset: ImageDataset, what: str) -> tuple[Features, Tensor]:
        found = extract(backbone, dataset, config.features, what=what, blocks=blocks)
        return found, tokens_of_features(found)

    val, tokens = classify(pair.val, f"held-out images, {config.data.val}")
    labels = pair.val_labels[val.rows]
    scores = [_metrics.topk(_metrics.ranking(heads.logits(tokens, i), 1), labels, 1) for i in range(len(heads.names()))]
    best = int(np.argmax(scores))
    logits = heads.logits(tokens, best)

    def logits_of(dataset: ImageDataset, what: str) -> tuple[Tensor, Tensor]:
        found, tokens = classify(dataset, what)
        return heads.logits(tokens, best), found.rows

    figures = _metrics.accuracies(logits, labels)
    figures |= real_figure(config.tests.real, pair.val, logits.argmax(dim=1), val.rows)
    figures |= measure(config.tests, config.data, pair.train, backbone.input_spec.channels, logits_of)
    name = heads.names()[best]
    record = {
        **settings.to_dict(config.data),
        "train_images": len(pair.train),
        "val_images": len(val),
        "classes": len(pair.classes),
        "skipped": list(val.skipped),
        "best": name,
        "heads": dict(zip(heads.names(), scores, strict=True)),
    }
    notes = [*notes, f"best of {len(scores)} heads on the held-out images themselves, as published: {name}"]
    seconds = time.perf_counter() - start
    results = Results("linear", figures, record, model, settings.to_dict(config), seconds, tuple(notes))
    if out is not None and is_main():
        results.write(out)
    return results


def train(
    backbone: Backbone, pair: LabelledPair, config: LinearConfig, out: Path | None, model_hash: str
) -> tuple[Heads, list[str]]:
    """All heads, trained; goes on from a checkpoint of the same settings in `out`.

    Returns:
        The heads, and notes.
    """
    linear, depth = config.linear, backbone.depth
    kinds = list(dict.fromkeys(Kind(min(n, depth), pool) for n in linear.blocks for pool in linear.mean_patch))
    device = next(backbone.parameters()).device
    heads = Heads(
        kinds,
        [lr * linear.batch_size / _REFERENCE_BATCH for lr in linear.lrs],
        backbone.embed_dim,
        len(pair.classes),
        seed=linear.seed,
        device=device,
        momentum=linear.momentum,
        weight_decay=linear.weight_decay,
    )
    path = None if out is None or not linear.every else Path(out) / f"linear-{_key(config, model_hash)}.safetensors"
    step = _restore(heads, path)
    share, pace = cosine(1.0, 0.0, linear.iterations), Pace("linear", linear.iterations)
    batches = _augmented if linear.augment else _fixed
    for tokens, labels in batches(backbone, pair, config, max(kind.blocks for kind in kinds), step):
        losses = heads.step(tokens.to(device), labels.to(device), share(step))
        if pace.due(step):
            pace.tell(step, f"losses {losses.min():.3f} to {losses.max():.3f}")
        step += 1
        if path is not None and step % linear.every == 0:
            _keep(heads, path, step)
    if path is not None and step % linear.every:
        _keep(heads, path, step)
    note = "learned from centre crops, without the published random crops and flips"
    return heads, [] if linear.augment else [note]


def rows_of(step: int, n: int, batch_size: int, seed: int) -> np.ndarray:
    """Images of one step: the next of an endless row of permutations, the same whatever was before."""
    places = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    return permute(places % n, n, seed, places // n)


def _fixed(
    backbone: Backbone, pair: LabelledPair, config: LinearConfig, blocks: int, start: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of features that are computed once."""
    found = extract(backbone, pair.train, config.features, what=f"training images, {config.data.train}", blocks=blocks)
    tokens, labels = tokens_of_features(found), pair.train_labels[found.rows]
    for step in range(start, config.linear.iterations):
        rows = rows_of(step, len(labels), config.linear.batch_size, config.linear.seed)[rank() :: world_size()]
        yield tokens[rows], labels[rows]


class Crops(torch.utils.data.Dataset):
    """Random crops of training images; item p is the p-th image of the endless row."""

    def __init__(self, pair: LabelledPair, transform: EvalTransform, seed: int) -> None:
        self.pair, self.transform, self.seed = pair, transform, seed

    def __getitem__(self, index: int) -> tuple[Tensor | None, int]:
        n, seed = len(self.pair.train), self.seed
        row = int(permute(index % n, n, seed, index // n)[()])
        try:
            image = match_channels(self.pair.train.image(row), self.transform.channels)
        except (DataError, OSError) as error:
            _log.warning("skipped %s: %s", self.pair.train.identify(row), error)
            return None, 0
        draws = np.random.default_rng([seed, index]).random(DRAWS + 1)
        image = cut(image, random_box(*size_of(image), _CROP_SCALE, _CROP_ASPECT, draws[1:].tolist()))
        image = resize(image, *self.transform.size)
        return self.transform.to_tensor(flip(image) if draws[0] < 0.5 else image), int(self.pair.train_labels[row])


def _augmented(
    backbone: Backbone, pair: LabelledPair, config: LinearConfig, blocks: int, start: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of random crops, each run through the backbone."""
    linear, device = config.linear, next(backbone.parameters()).device
    places = [
        list(range(step * linear.batch_size + rank(), (step + 1) * linear.batch_size, world_size()))
        for step in range(start, linear.iterations)
    ]
    workers = config.features.workers
    workers = (min(8, cores()) if device.type == "cuda" else 0) if workers is None else workers
    crops = Crops(pair, transform_of(backbone, config.features), linear.seed)
    loader = torch.utils.data.DataLoader(crops, batch_sampler=places, num_workers=workers, collate_fn=list)
    backbone.eval()
    for batch in loader:
        kept = [(picture, label) for picture, label in batch if picture is not None]
        if not kept:
            raise DataError(f"{pair.train.name}: none of the {len(batch)} images of a step could be read")
        images, labels = torch.stack([picture for picture, _ in kept]), torch.tensor([label for _, label in kept])
        yield tokens_of(backbone, images.to(device), blocks, config.features.precision), labels


def tokens_of_features(found: Features) -> Float[Tensor, "n LP D"]:
    """What heads see of features: CLS of the last blocks, and behind them the mean patch."""
    blocks = found.cls[:, None] if found.blocks is None else found.blocks
    return torch.cat([blocks, found.select("patch_mean", normalize=False)[:, None]], dim=1)


def _key(config: LinearConfig, model_hash: str) -> str:
    """Hash of what training depends on; where features are kept is none of it."""
    plain = replace(config, features=replace(config.features, cache="", workers=None, progress=True, device="auto"))
    text = json.dumps([settings.to_dict(plain), model_hash], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _restore(heads: Heads, path: Path | None) -> int:
    """The step to go on from; 0 where there is no checkpoint, or one that cannot be read."""
    if path is None or not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            for name, tensor in heads.state.items():
                tensor.copy_(file.get_tensor(name))
            step = int((file.metadata() or {})["step"])
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be continued ({error}); remove it to begin anew") from None
    _log.info("linear: going on from step %d of %s", step, path)
    return step


def _keep(heads: Heads, path: Path, step: int) -> None:
    if is_main():
        state = {name: tensor.cpu().contiguous() for name, tensor in heads.state.items()}
        write_whole(path, lambda place: save_tensors(state, place, metadata={"step": str(step)}), error=ConfigError)
    barrier()
