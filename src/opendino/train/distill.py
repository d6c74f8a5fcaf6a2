# SPDX-License-Identifier: Apache-2.0
"""A distillation run put together: its settings, what follows from the teacher, and its method.

Everything else is that of pretraining (`pretrain.py`). The losses are in `methods/distill.py`, the teacher is opened by
`teacher.py`.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from opendino.config import expand_home
from opendino.data.augment import check_crops
from opendino.data.datasets import ImageDataset
from opendino.data.normalization import normalization
from opendino.distributed import rank
from opendino.errors import ConfigError, ModelError
from opendino.layers.dino_head import DINOHead
from opendino.losses.distill import FeatureLoss
from opendino.methods.distill import Distill, FeatureDistill, Together
from opendino.methods.guide import Guide, Guided, check_crops_fit
from opendino.models.presets import BackboneConfig
from opendino.models.vision_transformer import VisionTransformer
from opendino.train.config import PretrainConfig, method_config
from opendino.train.guide_cache import GuideCache
from opendino.train.loop import Run
from opendino.train.parts import build_backbone, training_shape
from opendino.train.plan import Plan, plan
from opendino.train.pretrain import Outcome, build_run, pretrain
from opendino.train.settings import Choice
from opendino.train.state import seed_step
from opendino.train.teacher import Teacher, open_teacher, sizes_of

_log = logging.getLogger(__name__)
_OF_THE_RUN = ("crops.", "images.value_range", "images.orient")
"""Settings that a student takes over from its teacher's run."""

_SHARED = ("in_chans", "patch_size", "init_values", "drop_path_rate")
"""Settings that further students take over from the first, as far as they have none of their own."""


@dataclass(frozen=True)
class DistillConfig:
    """What a distillation takes besides the settings of pretraining.

    Attributes:
        teacher: a run folder, a training checkpoint of the official code, or anything that `opendino.load` takes.
        sha256: of the teacher's weights, found at the start; a run is continued with the very same only.
        targets: "heads" learns its prototype probabilities, as published; "features" its tokens; "auto" takes heads
            where there are any.
        feature_loss: distance of features.
        projector_layers: linear layers between the student's features and the teacher's, 1 or 2.
        resize: side that global crops are resized to for the teacher, pixels; 0 shows them as they are.
        also: further students, which learn from the same passes of the teacher; channels, patch size, start of
            LayerScale and stochastic depth are the first one's where they do not say their own.
        cache: folder where what the teacher says of crops is kept, for this run and others; for `crops.fixed_views`.
    """

    teacher: str = ""
    sha256: str = ""
    targets: Literal["auto", "heads", "features"] = "auto"
    feature_loss: FeatureLoss = "mixed"
    projector_layers: Literal[1, 2] = 2
    resize: int = 0
    also: tuple[BackboneConfig, ...] = ()
    cache: str = ""

    def __post_init__(self) -> None:
        for name in ("teacher", "cache"):
            object.__setattr__(self, name, expand_home(getattr(self, name)))
        if self.resize < 0:
            raise ConfigError(f"distill.resize = {self.resize}: use 0 for the crops' own, or pixels")


@dataclass(frozen=True)
class DistillRunConfig(PretrainConfig):
    """Every setting of `opendino distill`; `teacher` is how the average follows the student, as in pretraining."""

    distill: DistillConfig = field(default_factory=DistillConfig)


def plan_distill(recipe: Path | None, words: Sequence[str]) -> Plan:
    """Read the settings of a distillation; opens the teacher where the run is new.

    Args:
        recipe: YAML file, or None.
        words: `key=value` of the command line.

    Raises:
        ConfigError: a setting is unknown or of the wrong type, or does not go with the teacher.
        DataError: the images cannot be opened.
        CheckpointError: the teacher cannot be opened.
    """

    def more(first: PretrainConfig, given: Mapping[str, Any]) -> dict[str, Choice]:
        distill = _group(first)
        teacher = open_teacher(_source(distill))
        return choices_by(teacher, distill, given, recipe is not None)

    return plan(recipe, words, DistillRunConfig, more)


def distill(
    config: DistillRunConfig, chosen: Mapping[str, Any] | None = None, dataset: ImageDataset | None = None
) -> Outcome:
    """Train students on what a frozen teacher says, or continue the run in `config.output_dir`.

    Args:
        config: every setting; `plan_distill` makes one from a recipe and words.
        chosen: those settings among them that were chosen and not given, to be remembered for a resume.
        dataset: the images of `config.data`, where they have been opened already.

    Returns:
        Where the run is and what it came to; its weights are the average of the (first) student.

    Raises:
        ConfigError: settings contradict each other or the teacher, or the folder holds another run.
        CheckpointError: the teacher or a checkpoint cannot be read.
        OpendinoError: whatever `pretrain` raises.
    """
    _source(config.distill)
    return pretrain(config, chosen, dataset, build=build_distill)


def build_distill(config: PretrainConfig) -> Run:
    """Networks, optimizer and schedules at step 0, on the run's device."""
    return build_run(config, make_distill)


def make_distill(config: PretrainConfig) -> Guided:
    """The method of a run, initialised from its seed.

    Raises:
        ConfigError: the teacher is not that of the run's start, or does not go with the student.
        CheckpointError: the teacher cannot be opened.
    """
    settings = _group(config)
    if config.dino.objective != "prototypes":
        raise ConfigError(
            f"dino.objective = {config.dino.objective} is for opendino pretrain; here a teacher says what is "
            "learned, so leave it out"
        )
    teacher = open_teacher(_source(settings))
    if settings.sha256 not in ("", teacher.sha256):
        raise ConfigError(
            f"distill.teacher = {settings.teacher} has other weights ({teacher.sha256[:12]}...) than at the start of "
            f"this run ({settings.sha256[:12]}...); give the same teacher to continue, or another output_dir"
        )
    shapes = [config.student, *(training_shape(_like(also, config.student), config.crops) for also in settings.also)]
    for shape in shapes:
        check_crops(config.crops, shape.arguments().get("patch_size", 16))
    try:
        guide = make_guide(teacher, config)
        learners = [_learner(shape, guide, config) for shape in shapes]
    except ModelError as error:
        raise ConfigError(f"distill.teacher = {settings.teacher}: {error}") from None
    seed_step(config.seed, -1, rank())
    if len(learners) == 1:
        return learners[0]
    return Together(learners[0], dict(zip(names_of(settings.also), learners[1:], strict=True)))


def make_guide(teacher: Teacher, config: PretrainConfig) -> Guide:
    """The teacher as the run's crops are shown to it.

    Raises:
        ModelError: channels or sizes do not fit.
    """
    backbone, settings = teacher.backbone, _group(config)
    channels = config.student.arguments().get("in_chans", 3)
    if backbone.in_chans != channels:
        raise ModelError(
            f"takes images of {backbone.in_chans} channels, and the student of {channels}; set "
            f"student.in_chans={backbone.in_chans}"
        )
    crops = config.crops
    shown = {crops.global_size, crops.early_size or crops.global_size, *crops.mixed_sizes}
    for size in {settings.resize} if settings.resize else sorted(shown):
        check_crops_fit(backbone, size)
    images = normalization(channels, config.crops.mean, config.crops.std)
    guide = Guide(teacher.network, teacher.centers, images, settings.resize)
    if settings.cache:
        guide.memory = GuideCache(_home_of_cache(teacher, config))
    return guide


def _home_of_cache(teacher: Teacher, config: PretrainConfig) -> Path:
    """A folder for what this teacher says of crops of this normalisation, at this size and in this precision.

    Raises:
        ConfigError: every crop is new, so nothing would ever be found.
    """
    settings = _group(config)
    if not config.crops.fixed_views:
        raise ConfigError(
            f"distill.cache = {settings.cache} would fill and never be used, as every crop is new; set "
            "crops.fixed_views=N to have N sets of crops for each image, or leave the cache out"
        )
    mean, std = normalization(teacher.backbone.in_chans, config.crops.mean, config.crops.std)
    said = f"{teacher.sha256} {settings.resize} {config.train.precision} {mean} {std}"
    return Path(settings.cache) / hashlib.sha256(said.encode()).hexdigest()[:24]


def choices_by(
    teacher: Teacher, settings: DistillConfig, given: Mapping[str, Any], has_recipe: bool
) -> dict[str, Choice]:
    """Settings that follow from the teacher, by dotted key.

    Args:
        teacher: opened.
        settings: of the distillation so far.
        given: settings of the recipe and of the command line, dotted.
        has_recipe: leave to the recipe what the teacher does not force.
    """
    by_heads = settings.targets == "heads" or (settings.targets == "auto" and teacher.has_heads)
    targets = "heads" if by_heads else "features"
    what = "prototype probabilities, as published" if by_heads else "no heads, or features were asked for"
    chosen = {
        "distill.targets": Choice(targets, f"the teacher's {what}" if by_heads else what),
        "distill.sha256": Choice(teacher.sha256, "the teacher's weights as they are now"),
        "student.in_chans": Choice(teacher.backbone.in_chans, "channels that the teacher takes"),
        "student.drop_path_rate": Choice(0.0, "distillation is without stochastic depth, as published"),
        "masks.probability": Choice(0.0, "distillation is without masks, as published"),
    }
    if by_heads:
        chosen |= _of_heads(teacher, given)
    else:
        chosen["koleo.loss_weight"] = Choice(0.0, "the teacher's features are spread already")
    if not has_recipe:
        chosen["student.patch_size"] = Choice(teacher.backbone.patch_size, "the teacher's, so that patches agree")
        taken = {key: value for key, value in teacher.settings.items() if key.startswith(_OF_THE_RUN)}
        # Small crops early on belong to the length of the teacher's run.
        taken = {key: value for key, value in taken.items() if not key.startswith("crops.early_")}
        chosen |= {key: Choice(value, "as the teacher was trained") for key, value in taken.items()}
        if not by_heads:
            chosen["crops.local_number"] = Choice(0, "features are compared view by view")
    return chosen


def names_of(students: Sequence[BackboneConfig]) -> list[str]:
    """A name for each further student: its preset, with a number behind it where it has been there before."""
    names: list[str] = []
    for student in students:
        same = sum(name.partition("-")[0] == student.preset for name in names)
        names.append(f"{student.preset}-{same + 1}" if same else student.preset)
    return names


def _of_heads(teacher: Teacher, given: Mapping[str, Any]) -> dict[str, Choice]:
    """The student's heads as the teacher's, and its targets as they were at the end of its run."""
    chosen = {"ibot.separate_head": Choice("ibot_head" in teacher.network, "as the teacher's heads are")}
    for name, head in teacher.network.items():
        if isinstance(head, DINOHead):
            group = name.removesuffix("_head")
            why = f"those of the teacher's {name}"
            chosen[f"{group}.prototypes"] = Choice(head.out_dim, why)
            chosen |= {f"{group}.{key}": Choice(value, why) for key, value in sizes_of(head).items()}
    run = teacher.settings
    if "dino.centering" in run:
        chosen["dino.centering"] = Choice(run["dino.centering"], "as the teacher's targets were made")
    if "teacher.temp" in run and "teacher.temp_warmup" not in given:
        last = run["teacher.temp"][1]
        chosen["teacher.temp"] = Choice((last, last), "where the teacher's run ended")
    return chosen


def _like(also: BackboneConfig, first: BackboneConfig) -> BackboneConfig:
    """A further student with what has to be, or was chosen to be, the same for all, where it does not say its own."""
    shared = {name: getattr(first, name) for name in _SHARED if getattr(also, name) is None}
    return dataclasses.replace(also, **shared)


def _learner(student: BackboneConfig, guide: Guide, config: PretrainConfig) -> Guided:
    """One student with its average, both as the seed makes them."""
    settings, method = _group(config), method_config(config)
    seed_step(config.seed, -1)
    networks: list[VisionTransformer] = [
        build_backbone(student, config.crops),
        build_backbone(dataclasses.replace(student, drop_path_rate=0.0), config.crops),
    ]
    by_heads = settings.targets == "heads" or (settings.targets == "auto" and "dino_head" in guide.network)
    if by_heads:
        return Distill(networks[0], networks[1], guide, method)
    return FeatureDistill(networks[0], networks[1], guide, method, settings.feature_loss, settings.projector_layers)


def _group(config: PretrainConfig) -> DistillConfig:
    return config.distill if isinstance(config, DistillRunConfig) else DistillConfig()


def _source(settings: DistillConfig) -> str:
    if not settings.teacher:
        raise ConfigError(
            "distill.teacher is missing: give teacher=RUN, a run folder or anything that opendino.load takes"
        )
    return settings.teacher
