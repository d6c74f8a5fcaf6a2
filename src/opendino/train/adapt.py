# SPDX-License-Identifier: Apache-2.0
"""An adaptation put together: a run of pretraining that starts from weights, and the report of how far they moved.

The settings are in `adapt_config.py` and chosen in `adapt_plan.py`; the weights are opened by `start.py`; the method is
`methods/adapt.py`. Everything else is that of pretraining (`pretrain.py`).
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from opendino.checkpoint import store
from opendino.checkpoint.hub import RUN_WEIGHTS, load_backbone
from opendino.config import leaves
from opendino.data.datasets import ImageDataset
from opendino.distributed import is_main, joined, largest
from opendino.errors import ConfigError, ModelError, OpendinoError
from opendino.eval import drift
from opendino.eval._features import FeatureConfig
from opendino.files import write_whole
from opendino.methods.adapt import Adaptation
from opendino.methods.method import Method
from opendino.models.vision_transformer import VisionTransformer
from opendino.optim.adamw import OptimConfig, adamw, peak_lr
from opendino.optim.param_groups import param_groups
from opendino.optim.schedules import Schedule, linear
from opendino.train.adapt_config import AdaptConfig, check_adaptation, typed
from opendino.train.config import PretrainConfig, method_config
from opendino.train.loop import Run, Schedules
from opendino.train.parts import build_method, build_schedules
from opendino.train.pretrain import Outcome, build_run, open_images, pretrain
from opendino.train.start import Start, fitted, forget_start, open_start
from opendino.train.state import seed_step

_log = logging.getLogger(__name__)

REPORT = "drift.json"
"""File of a run folder that says how far the features moved from the start."""

_HEAD_WARMUP = 0.1  # of the heads' phase
_ALONGSIDE = "mask_token"


@dataclass(frozen=True)
class Adapted:
    """What an adaptation came to.

    Attributes:
        outcome: of the training.
        drift: figures of `eval/drift.py` against the start; empty where the start could not be opened again.
        warnings: a sentence for each that is above its limit, or for what is missing.
    """

    outcome: Outcome
    drift: dict[str, float]
    warnings: tuple[str, ...] = ()


def adapt(config: AdaptConfig, chosen: Mapping[str, Any] | None = None, dataset: ImageDataset | None = None) -> Adapted:
    """Train on from weights, or continue the run in `config.output_dir`; then compare with the start.

    Args:
        config: every setting; `adapt_plan.plan_adaptation` makes one from a recipe and words.
        chosen: those settings among them that were chosen and not given, to be remembered for a resume.
        dataset: the images of `config.data`, where they have been opened already.

    Raises:
        ConfigError: settings contradict each other or the weights, or the folder holds another run.
        CheckpointError: the weights or a checkpoint cannot be read.
        OpendinoError: whatever `pretrain` raises.
    """
    with joined(alone=config.parallel.mode == "fsdp"):  # also for the report, of which process 0 writes the file
        dataset = open_images(config, dataset)
        outcome = pretrain(config, chosen, dataset, build=build_adaptation)
        return _report(config, outcome, dataset)


def build_adaptation(config: PretrainConfig) -> Run:
    """Networks with the weights of the start, optimizer and schedules at step 0, on the run's device."""
    adapting = typed(config)
    check_adaptation(adapting)
    run = build_run(config, make_adaptation)
    batch_size, steps = config.train.batch_size, adapting.head_steps
    faster = adapting.adapt.head_lr / config.optim.base_lr if adapting.adapt.head_lr else 1.0
    later = build_schedules(config.optim, config.teacher, config.train.iterations - steps, batch_size)
    return dataclasses.replace(
        run,
        optimizer=optimizer_of(run.method, config.optim, faster),
        schedules=in_two_phases(later, steps, peak_lr(config.optim, batch_size), adapting.adapt.head_momentum),
    )


def make_adaptation(config: PretrainConfig) -> Method:
    """The method with the weights of the start; of a run that has a checkpoint already, with those of its seed.

    Raises:
        ConfigError: the weights are not those of the run's start, or do not go with the settings.
        CheckpointError: they cannot be opened.
    """
    adapting = typed(config)
    settings = adapting.adapt
    method = build_method(config.student, config.crops, method_config(config), config.seed, Adaptation)
    if store.latest(Path(config.output_dir)) is None:  # else the checkpoint holds everything, and is read next
        try:
            _opened(adapting).put_into(method, settings.channels)
        except ModelError as error:
            raise ConfigError(f"init = {adapting.init}: {error}") from None
        forget_start()
    method.head_steps = adapting.head_steps
    if adapting.gram.loss_weight:
        backbone = method.get_submodule("teacher.backbone")
        assert isinstance(backbone, VisionTransformer)
        try:
            anchor = fitted(_opened(adapting).backbone, backbone, settings.channels)
        except ModelError as error:
            raise ConfigError(f"init = {adapting.init}: {error}") from None
        method.anchor_to(anchor, adapting.gram, (backbone.input_spec.mean, backbone.input_spec.std))
        forget_start()  # the anchor is this method's own from here on
    if settings.lora:
        same = adapting.origin.channels in (0, config.student.arguments().get("in_chans", 3))
        also = _ALONGSIDE if same else f"{_ALONGSIDE}|patch_embed"  # what was fitted to other channels has to learn
        seed_step(config.seed, -2)  # the products begin alike on all processes
        layers = method.use_lora(settings.lora, settings.lora_alpha, settings.lora_layers, also)
        _log.info("LoRA of rank %d on %d layers", settings.lora, len(layers))
    return method


def optimizer_of(method: Method, config: OptimConfig, faster: float) -> torch.optim.AdamW:
    """AdamW on the student's parameters, the heads at a rate of their own.

    Args:
        method: its student's parameters that take gradients are trained.
        config: of the optimizer.
        faster: factor on the heads' learning rate.
    """
    groups = []
    for group in param_groups(
        method.student, layerwise_decay=config.layerwise_decay, patch_embed_lr_mult=config.patch_embed_lr_mult
    ):
        heads = [pair for pair in group["params"] if not pair[0].startswith("backbone.")]
        others = [pair for pair in group["params"] if pair[0].startswith("backbone.")]
        for params, factor in ((others, 1.0), (heads, faster)):
            if params:
                groups.append({**group, "params": params, "lr_multiplier": group["lr_multiplier"] * factor})
    return adamw(groups, config)


def in_two_phases(later: Schedules, head_steps: int, peak: float, momentum: float) -> Schedules:
    """Schedules that are constant while the heads learn alone, after a short rise, and begin anew behind that.

    Args:
        later: of the run behind the heads' phase.
        head_steps: length of that phase.
        peak: learning rate in it.
        momentum: of the teacher in it.
    """
    rise = linear(0.0, peak, round(_HEAD_WARMUP * head_steps))
    first = Schedules(
        lr=rise,
        weight_decay=_constant(later.weight_decay(0)),
        last_layer_lr=rise,
        momentum=_constant(momentum),
        teacher_temp=_constant(later.teacher_temp(0)),
    )
    return Schedules(*(_joined(one, two, head_steps) for one, two in zip(first, later, strict=True)))


def _joined(first: Schedule, later: Schedule, border: int) -> Schedule:
    return lambda step: first(step) if step < border else later(step - border)


def _constant(value: float) -> Schedule:
    return lambda _step: value


def _opened(config: AdaptConfig) -> Start:
    start = open_start(config.init, config.adapt.start)
    if config.origin.sha256 not in ("", start.sha256):
        raise ConfigError(
            f"init = {config.init} has other weights ({start.sha256[:12]}...) than at the start of this run "
            f"({config.origin.sha256[:12]}...); give the same ones, or another output_dir"
        )
    return start


def _report(config: AdaptConfig, outcome: Outcome, dataset: ImageDataset) -> Adapted:
    """Write and return how far the features moved; a start that is gone costs the report, never the run."""
    place = outcome.output_dir / REPORT
    origin, settings = dataclasses.asdict(config.origin), leaves(config.drift)
    asked = {"step": outcome.steps, "origin": origin, "settings": settings, "held_out": _source(config)}
    known = None if outcome.trained else _written(place, asked)
    if not largest(int(known is None))[0] and known is not None:
        return Adapted(outcome, {name: known[name] for name in known["names"]}, tuple(known["warnings"]))
    after = load_backbone(outcome.output_dir / RUN_WEIGHTS)
    try:
        before = fitted(_opened(config).backbone, after, config.adapt.channels)
        images, what = _held_out(config, dataset)
        features = FeatureConfig(precision=config.train.precision, device=config.train.device, progress=False)
        figures = drift.between(before, after, images, config.drift, features)
    except OpendinoError as error:
        return Adapted(outcome, {}, (f"no drift report: {error}",))
    warnings = tuple(drift.warnings(figures, config.drift.limit))
    record = {**asked, "images": what, **figures, "names": list(figures), "warnings": warnings}
    if is_main():
        write_whole(place, json.dumps(record, indent=1) + "\n")
    return Adapted(outcome, figures, warnings)


def _written(place: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report of a run that was finished already, if it answers what is asked."""
    try:
        record = json.loads(place.read_text(encoding="utf-8"))
        whole = {"names", "warnings", *record["names"]} <= record.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    wanted = json.loads(json.dumps(asked))  # as it looks when it comes back
    return record if whole and all(record.get(key) == value for key, value in wanted.items()) else None


def _source(config: AdaptConfig) -> str:
    """Images of the report that were named; empty for those that were trained on."""
    return config.adapt.held_out or config.knn.val


def _held_out(config: AdaptConfig, dataset: ImageDataset) -> tuple[ImageDataset, str]:
    """Images of the report, and what they are."""
    source = _source(config)
    if not source:
        return dataset, f"{config.data}, trained on without labels; adapt.held_out=IMAGES names others"
    return open_images(dataclasses.replace(config, data=source)), source
