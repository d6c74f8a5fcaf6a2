# SPDX-License-Identifier: Apache-2.0
"""Which settings of an adaptation follow from what it starts from; the words and the recipe win, as always.

From a run everything is inherited, and the schedules are compressed to the new length. From weights only the shape and
the images' normalisation are; the rest is low rates, a slow teacher and a phase for new heads. Read next: `adapt.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opendino.checkpoint._architecture import arguments_of
from opendino.config import fields_of
from opendino.errors import ConfigError
from opendino.models.presets import PRESETS
from opendino.train import run_folder
from opendino.train.adapt_config import AdaptConfig, typed
from opendino.train.config import PretrainConfig
from opendino.train.plan import Plan, given_by, plan
from opendino.train.settings import Choice
from opendino.train.start import Start, open_start

PHASE = 10_000
"""Steps of the published high-resolution phase."""

INHERITED, SHAPE, ORIGIN = "as in the run it starts from", "of the weights", "what it starts from"
UNSAID = (INHERITED, SHAPE, ORIGIN)
"""Reasons of settings that are taken over, too many to be shown."""

_CPU_PHASE = 2000
_LOWER = 0.1  # of a run's learning rate; the published phase has "a reduced base learning rate" and no number
_LENGTHS = ("optim.warmup", "optim.cooldown", "optim.freeze_last_layer", "teacher.temp_warmup")
# What belongs to a machine or to the length of a run is chosen anew.
_NOT_INHERITED = ("student.", "output_dir", "train.iterations", "train.epochs", "train.threads", "train.device")
_NOT_INHERITED += ("parallel.", "checkpoint.", "log.every", "loader.workers", "knn.every", "knn.share", "knn.max_")
_NOT_INHERITED += ("crops.early_", "crops.mixed_sizes")
_OF_DISTILLATION = ("masks.probability", "koleo.")  # which is without masks and may be without KoLeo
_OF_THE_IMAGES = ("data", "images.", "crops.")
_LOOKED_AT = ("knn.train", "knn.val")  # beside the run's images; other images get looks of their own
_FREE = ("drop_path_rate", "drop_path_uniform", "in_chans", "img_size", "init_values")
_LOCAL = 7 / 16  # of the global crops' side, as published: 98 of 224


def plan_adaptation(recipe: Path | None, words: Sequence[str]) -> Plan:
    """Read the settings of an adaptation; opens what it starts from where the run is new.

    Args:
        recipe: YAML file, or None.
        words: `key=value` of the command line.

    Raises:
        ConfigError: a setting is unknown or of the wrong type, or does not go with the weights.
        DataError: the images cannot be opened.
        CheckpointError: the weights cannot be opened.
    """
    given, words = given_by(recipe, words), list(words)
    if "data" not in given:
        words += _inherited_data(given)

    def more(first: PretrainConfig, given: Mapping[str, Any]) -> dict[str, Choice]:
        config = typed(first)
        return choices_by(open_start(config.init, config.adapt.start), config, given)

    planned = plan(recipe, words, AdaptConfig, more)
    if planned.resumed:
        return planned
    config = typed(planned.config)
    return _settle_channels(planned, open_start(config.init, config.adapt.start), given)


def choices_by(start: Start, config: AdaptConfig, given: Mapping[str, Any]) -> dict[str, Choice]:
    """Settings that follow from the weights, by dotted key.

    Args:
        start: the weights.
        config: the settings so far.
        given: settings of the recipe and of the command line, dotted.

    Raises:
        ConfigError: the shape that was given is not that of the weights, or the resolution does not fit the patch.
    """
    arguments = arguments_of(start.backbone)
    _check_shape(start, arguments, given)
    check_resolution(config.resolution, arguments["patch_size"])
    found = {
        "origin.kind": Choice(start.kind, ORIGIN),
        "origin.source": Choice(start.source, ORIGIN),
        "origin.sha256": Choice(start.sha256, ORIGIN),
        "origin.step": Choice(start.step, ORIGIN),
        "origin.channels": Choice(start.backbone.in_chans, ORIGIN),
    }
    shape = {f"student.{name}": Choice(value, SHAPE) for name, value in arguments.items()}
    shape["student.preset"] = Choice("vit_custom", SHAPE)
    shape["student.init_values"] = Choice(arguments["init_values"] or 0.0, SHAPE)
    del shape["student.in_chans"]  # see `_settle_channels`
    if config.resolution:
        shape["student.img_size"] = Choice(config.resolution, "the position table is resized once")
    of_kind = _by_run(start, config) if start.kind == "checkpoint" else _by_weights(start, config, given)
    chosen = found | shape | of_kind
    return chosen | _sizes(start, config, given, arguments["patch_size"])


def check_resolution(resolution: int, patch_size: int) -> None:
    """Check that the position table can be laid out for a resolution.

    Raises:
        ConfigError: says which would do.
    """
    if resolution % patch_size:
        below = resolution // patch_size * patch_size
        fitting = f"{below} or {below + patch_size}" if below else f"{patch_size}"
        raise ConfigError(f"resolution = {resolution} is not a multiple of the patch size {patch_size}; use {fitting}")


def _by_run(start: Start, config: AdaptConfig) -> dict[str, Choice]:
    """A phase of the same training: everything as it was, compressed, at a lower rate."""
    known = start.settings
    changed = (*_NOT_INHERITED, *_OF_DISTILLATION) if "distill.teacher" in known else _NOT_INHERITED
    changed += () if config.data == known.get("data") else _LOOKED_AT
    passed_on = [key for key in fields_of(PretrainConfig) if key in known and not key.startswith(changed)]
    chosen = {key: Choice(known[key], INHERITED) for key in passed_on}
    depth = ("student.drop_path_rate", "student.drop_path_uniform")
    chosen |= {key: Choice(known[key], INHERITED) for key in depth if key in known}
    before = known["train.iterations"]
    steps = min(PHASE, before)
    published = f"the published phase; the run it starts from has {before}"
    chosen["train.iterations"] = Choice(steps, published if steps == PHASE else "as many as the run it starts from")
    for key in _LENGTHS:
        if isinstance(known.get(key), int):  # a length in steps, of the longer run
            share = round(min(known[key] / before, 1.0), 6)
            chosen[key] = Choice(share, f"{known[key]} of {before} steps, compressed")
    rate = known["optim.base_lr"]
    chosen["optim.base_lr"] = Choice(rate * _LOWER, f"a tenth of {rate:g}; published is that it is lower, not how much")
    return chosen


def _by_weights(start: Start, config: AdaptConfig, given: Mapping[str, Any]) -> dict[str, Choice]:
    """Continued training of weights that stand alone."""
    chosen = {
        key: Choice(value, INHERITED)
        for key, value in start.settings.items()
        if key in fields_of(PretrainConfig) and key.startswith(_OF_THE_IMAGES) and not key.startswith(_NOT_INHERITED)
    }
    spec = start.backbone.input_spec
    if not start.settings:
        patch = start.backbone.patch_size
        size = max(min(spec.size) // patch, 1) * patch
        chosen["crops.global_size"] = Choice(size, "the size that the weights are used at")
        chosen["crops.mean"] = Choice(spec.mean, "as the weights were trained")
        chosen["crops.std"] = Choice(spec.std, "as the weights were trained")
    steps = _steps(given, PHASE if _on_gpu(config) else _CPU_PHASE)
    momentum = round(min(max(1 - 10 / steps, 0.99), 0.9995), 4)
    return chosen | {
        "train.iterations": Choice(steps, "as the published phase has" if steps == PHASE else "for a CPU"),
        "teacher.momentum": Choice((momentum, 1.0), "a slow teacher keeps what the weights know"),
        "optim.base_lr": Choice(1e-4, "low: the weights are trained already"),
        "optim.weight_decay": Choice((0.04, 0.04), "low: the weights are trained already"),
        "optim.layerwise_decay": Choice(0.9, "early blocks change least, as published"),
        "optim.patch_embed_lr_mult": Choice(0.2, "as published"),
        "adapt.head_steps": Choice(0.1, "the heads are new: they learn alone first"),
        "adapt.head_lr": Choice(1e-3, "the heads are new"),
    }


def _sizes(start: Start, config: AdaptConfig, given: Mapping[str, Any], patch: int) -> dict[str, Choice]:
    """Crops of the new resolution, local ones in proportion."""
    if not config.resolution:
        return {}
    size = given.get("crops.global_size", config.resolution)
    before = start.settings.get("crops.global_size", 0), start.settings.get("crops.local_size", 0)
    share = before[1] / before[0] if all(before) else _LOCAL
    local = max(round(size * share / patch), 1) * patch
    return {
        "crops.global_size": Choice(config.resolution, "the resolution"),
        "crops.local_size": Choice(local, f"{share:.3g} of the global crops, as before"),
    }


def _settle_channels(planned: Plan, start: Start, given: Mapping[str, Any]) -> Plan:
    """Channels of the images: the weights' own where those images can be shown as such, else the data's."""
    own = start.backbone.in_chans
    config, choices = planned.config, dict(planned.choices)
    found = config.student.arguments().get("in_chans", 3)
    if "student.in_chans" not in given:
        grey = own == 3 and found == 1
        why = "the weights' own; grey is shown as three equal channels, student.in_chans=1 fits the weights to it"
        choices["student.in_chans"] = Choice(own if grey else found, why if grey else f"the images have {found}")
        config = dataclasses.replace(
            config, student=dataclasses.replace(config.student, in_chans=choices["student.in_chans"].value)
        )
    if config.student.in_chans != own:
        mean, std = (() if f"crops.{name}" not in given else getattr(config.crops, name) for name in ("mean", "std"))
        config = dataclasses.replace(config, crops=dataclasses.replace(config.crops, mean=mean, std=std))
        why = f"those of {config.student.in_chans} channels"
        choices |= {
            f"crops.{name}": Choice(value, why)
            for name, value in (("mean", mean), ("std", std))
            if f"crops.{name}" not in given
        }
    return dataclasses.replace(planned, config=config, choices=choices)


def _check_shape(start: Start, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    preset = PRESETS.get(str(given.get("student.preset")), {})
    wished = preset | {key.partition(".")[2]: value for key, value in given.items() if key.startswith("student.")}
    wished.pop("preset", None)
    same = {"swiglufused": "swiglu"}
    differing = [
        f"{name} {arguments[name]} and not {value}"
        for name, value in wished.items()
        if name not in _FREE and name in arguments and value is not None and same.get(value, value) != arguments[name]
    ]
    if differing:
        raise ConfigError(
            f"init = {start.source} has {', '.join(differing)}; leave student.* out: the shape is that of the weights"
        )


def _inherited_data(given: Mapping[str, Any]) -> list[str]:
    """The images of the run that this one continues or starts from."""
    for folder in (given.get("output_dir"), given.get("init")):
        if folder and (Path(str(folder)) / "run.json").is_file():
            stored = run_folder.read(Path(str(folder)))
            if stored is not None and stored.settings.get("data"):
                return [f"data={stored.settings['data']}"]
    return []


def _steps(given: Mapping[str, Any], otherwise: int) -> int:
    steps = given.get("train.iterations", otherwise)
    return steps if isinstance(steps, int) and steps > 0 else otherwise


def _on_gpu(config: AdaptConfig) -> bool:
    import torch

    return config.train.device != "cpu" and torch.cuda.is_available()
