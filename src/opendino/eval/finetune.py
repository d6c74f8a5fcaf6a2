# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning: a classifier on [CLS, mean patch] and the backbone under it, written as a Hugging Face model.

`full` trains everything, with smaller rates for earlier blocks; `last` the last blocks and the norm; `lora` thin
products beside the attention's layers, folded in at the end. `out/model` opens as `Dinov2ForImageClassification`, of
opendino.hf and of transformers; its position table is laid out for the size of training, where all libraries agree.

Read next: `linear.py` (order and crops), `models/classifier.py`, `layers/lora.py`.
"""

import json
import logging
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from opendino import config as settings
from opendino.checkpoint.conversion import ConvertConfig, convert
from opendino.checkpoint.convert._hf_config import CONFIG, PREPROCESSOR, write_spec
from opendino.distributed import is_main, rank, world_size
from opendino.errors import ConfigError, DataError, TrainingError
from opendino.eval import _metrics
from opendino.eval._data import LabelledConfig, LabelledPair, open_pair
from opendino.eval._features import FeatureConfig, framing, place, transform_of
from opendino.eval._pace import Pace
from opendino.eval._results import Results, describe
from opendino.eval._test_sets import TestSetsConfig, measure
from opendino.eval.adapters import Backbone
from opendino.eval.linear import Crops
from opendino.files import save_tensors, write_whole
from opendino.layers.lora import add_lora, merge_lora
from opendino.models.classifier import LinearClassifier
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer
from opendino.optim.param_groups import param_groups
from opendino.optim.schedules import cosine, steps_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneConfig:
    """What is trained, and how.

    Attributes:
        mode: full, last or lora.
        blocks: how many of the last blocks `last` trains.
        rank: inner width of LoRA's products.
        alpha: their strength.
        layers: which linear layers get them: a regular expression for the end of their names.
        epochs: passes over the training images.
        batch_size: images a step.
        lr: peak learning rate of AdamW.
        head_lr: of the classifier, as a multiple of `lr`.
        weight_decay: of AdamW; none on biases and norms, the classifier's bias among them.
        warmup: steps, or share of the run.
        layerwise_decay: factor on the rate from one block to the block before it.
        label_smoothing: share of the target that is spread over all classes.
        clip_grad: largest norm of the gradient.
        seed: of order, crops and the classifier.
    """

    mode: Literal["full", "last", "lora"] = "full"
    blocks: int = 2
    rank: int = 8
    alpha: float = 16.0
    layers: str = r"attn\.(qkv|proj)"
    epochs: int = 20
    batch_size: int = 64
    lr: float = 5e-5
    head_lr: float = 10.0
    weight_decay: float = 0.05
    warmup: int | float = 0.1
    layerwise_decay: float = 0.75
    label_smoothing: float = 0.1
    clip_grad: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (self.blocks, self.rank, self.epochs, self.batch_size, self.lr, self.head_lr, self.clip_grad)
        if not min(positive) > 0 or not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                "finetune: blocks, rank, epochs, batch_size, lr, head_lr and clip_grad have to be positive, "
                "label_smoothing from 0 to below 1; correct them"
            )
        limits = {"lr": (0, math.inf), "weight_decay": (0, math.inf), "layerwise_decay": (0, 1)}
        settings.check_numbers("finetune", vars(self), limits)


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of `opendino eval finetune`."""

    data: LabelledConfig = field(default_factory=LabelledConfig)
    finetune: TuneConfig = field(default_factory=TuneConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    tests: TestSetsConfig = field(default_factory=TestSetsConfig)


def run(
    backbone: Backbone,
    config: FinetuneConfig,
    *,
    out: Path | None = None,
    source: Mapping[str, object] | None = None,
) -> Results:
    """Fine-tune and measure; in a single process.

    Args:
        backbone: moved to `config.features.device`, and changed.
        config: data and training.
        out: folder for the JSON file and `model/`, or None.
        source: where the model came from, for the record.

    Raises:
        ConfigError: a model of another library, a group of processes, or a setting that does not fit.
        DataError: images that cannot be used.
        TrainingError: the loss is not finite.
        CheckpointError: `out/model` is there already.
    """
    start = time.perf_counter()
    if not isinstance(backbone, VisionTransformer) or world_size() > 1:
        raise ConfigError("finetune: takes our own kind of backbone in one process; convert the model, start it once")
    if out is not None and (Path(out) / "model").exists():
        raise ConfigError(f"{Path(out) / 'model'}: exists already; give another out=, or remove it")
    place(backbone, config.features)
    pair, model = open_pair(config.data, backbone.input_spec.channels), describe(backbone, source or {})
    classifier = prepare(backbone, config, pair)
    train(classifier, pair, config)
    logits, rows = predict(classifier, pair.val, config.features)
    figures = _metrics.accuracies(logits, pair.val_labels[rows])

    def logits_of(dataset: object, _what: str) -> tuple[Tensor, Tensor]:
        return predict(classifier, dataset, config.features)

    figures |= measure(config.tests, config.data, pair.train, backbone.input_spec.channels, logits_of)
    record = {**settings.to_dict(config.data), "train_images": len(pair.train), "val_images": len(rows),
              "classes": len(pair.classes)}  # fmt: skip
    if out is not None and is_main():
        write_model(classifier, Path(out) / "model")
        record["written"] = str(Path(out) / "model")
    seconds = time.perf_counter() - start
    results = Results("finetune", figures, record, model, settings.to_dict(config), seconds)
    if out is not None and is_main():
        results.write(out)
    return results


def prepare(backbone: VisionTransformer, config: FinetuneConfig, pair: LabelledPair) -> LinearClassifier:
    """The classifier, its position table laid out for the size it will see, with what is trained unfrozen.

    Raises:
        ConfigError: more blocks are to be trained than there are.
    """
    tune = config.finetune
    size, _ = framing(backbone.input_spec, backbone.patch_size, config.features)
    spec = backbone.input_spec
    backbone = backbone.bake(size)
    backbone.input_spec = InputSpec((size, size), spec.channels, spec.mean, spec.std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(tune.seed)
        classifier = LinearClassifier(backbone, len(pair.classes), 1, list(pair.classes))
        torch.nn.init.normal_(classifier.linear_head.weight, std=0.01)
        torch.nn.init.zeros_(classifier.linear_head.bias)
        backbone.requires_grad_(tune.mode == "full")
        if tune.mode == "lora":
            add_lora(backbone, tune.layers, tune.rank, tune.alpha)
    if tune.mode == "last":
        if tune.blocks > backbone.depth:
            raise ConfigError(f"finetune.blocks = {tune.blocks}: the backbone has {backbone.depth}; give at most those")
        for block in list(backbone.blocks)[-tune.blocks :]:
            block.requires_grad_(True)
        backbone.norm.requires_grad_(True)
    backbone.mask_token.requires_grad_(False)
    return classifier.to(backbone.pos_embed.device)


def train(classifier: LinearClassifier, pair: LabelledPair, config: FinetuneConfig) -> None:
    """AdamW with warm-up, a cosine to 0 and smoothed labels, on random crops; LoRA is folded in at the end."""
    tune, device = config.finetune, classifier.linear_head.weight.device
    steps = max(tune.epochs * len(pair.train) // tune.batch_size, 1)
    lr = cosine(tune.lr, 0.0, steps, steps_of(tune.warmup, steps, "finetune.warmup"))
    optimizer = torch.optim.AdamW(groups_of(classifier, tune), lr=tune.lr)
    crops = Crops(pair, transform_of(classifier.backbone, config.features), tune.seed)
    classifier.train()
    bf16, pace = config.features.precision == "bf16", Pace("finetune", steps)
    for step in range(steps):
        taken = [crops[place] for place in range(step * tune.batch_size, (step + 1) * tune.batch_size)]
        kept = [(picture, label) for picture, label in taken if picture is not None]
        if not kept:
            raise DataError(f"{pair.train.name}: none of the {len(taken)} images of a step could be read")
        images, labels = torch.stack([p for p, _ in kept]).to(device), torch.tensor([c for _, c in kept], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = classifier(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=tune.label_smoothing)
        for group in optimizer.param_groups:
            group["lr"] = lr(step) * group["lr_multiplier"]
            group["weight_decay"] = tune.weight_decay * group["wd_multiplier"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in classifier.parameters() if p.requires_grad], tune.clip_grad)
        optimizer.step()
        if pace.due(step):
            if not torch.isfinite(loss):
                raise TrainingError(f"finetune: the loss of step {step} is {loss.item()}; use a smaller finetune.lr")
            pace.tell(step, f"loss {loss.item():.3f}")
    merge_lora(classifier.backbone)
    classifier.eval()


def groups_of(classifier: LinearClassifier, tune: TuneConfig) -> list[dict[str, Any]]:
    """What is trained, for an optimizer, each group with its factors on the learning rate and the weight decay."""
    groups = param_groups(classifier.backbone, layerwise_decay=tune.layerwise_decay, patch_embed_lr_mult=1.0)
    head = param_groups(classifier.linear_head)
    groups += [{**group, "lr_multiplier": tune.head_lr} for group in head]
    return [{**group, "params": [parameter for _, parameter in group["params"]]} for group in groups]


@torch.no_grad()
def predict(classifier: LinearClassifier, dataset: object, config: FeatureConfig) -> tuple[Tensor, Tensor]:
    """Logits of the images that can be read, and their rows."""
    transform = transform_of(classifier.backbone, config)
    device, rows, logits, waiting = classifier.linear_head.weight.device, [], [], []
    classifier.eval()
    last = len(dataset) - 1  # pyrefly: ignore[bad-argument-type]
    for row in range(rank(), last + 1):
        try:
            waiting.append(transform(dataset.image(row)))  # pyrefly: ignore[missing-attribute]
            rows.append(row)
        except (DataError, OSError) as error:
            _log.warning("skipped: %s", error)
        if waiting and (len(waiting) == config.batch_size or row == last):
            logits.append(classifier(torch.stack(waiting).to(device)).float().cpu())
            waiting = []
    if not logits:
        raise DataError("none of the images could be read; see the lines above for the reason of each")
    return torch.cat(logits), torch.tensor(rows)


def write_model(classifier: LinearClassifier, folder: Path) -> None:
    """A folder that opens as `Dinov2ForImageClassification` (with registers: its sister), proved by reading it back.

    Raises:
        CheckpointError: it is there already, or cannot be written.
        ConversionError: it does not give the same logits.
    """
    backbone = classifier.backbone
    state = {name.removeprefix("backbone."): tensor.detach().cpu().contiguous().clone()
             for name, tensor in classifier.state_dict().items()}  # fmt: skip
    size = (backbone.grid[0] * backbone.patch_size, backbone.grid[1] * backbone.patch_size)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "classifier.safetensors"
        save_tensors(state, file)
        convert(file, folder, ConvertConfig(to="hf", num_heads=backbone.num_heads, img_size=size))
    labels = classifier.labels or ()
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    content["id2label"] = {str(number): name for number, name in enumerate(labels)}
    content["label2id"] = {name: number for number, name in enumerate(labels)}
    write_whole(folder / CONFIG, json.dumps(content, indent=2) + "\n")
    write_whole(folder / PREPROCESSOR, json.dumps(write_spec(backbone.input_spec), indent=2) + "\n")
