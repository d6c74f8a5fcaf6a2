# SPDX-License-Identifier: Apache-2.0
"""Every setting of a pretraining run, what of them does not go together, and what follows from them.

A group lives with what it configures; here stand those of the run itself. Read next: `plan.py`, `pretrain.py`.
"""

import dataclasses
import logging
import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from opendino.checkpoint.store import CheckpointConfig
from opendino.config import check_numbers, expand_home
from opendino.data.augment import CropsConfig, check_crops
from opendino.data.fast import choose_decoder
from opendino.data.loaders import LoaderConfig
from opendino.data.masking import MaskConfig
from opendino.distributed import world_size
from opendino.errors import ConfigError, ModelError
from opendino.eval.watch import WatchConfig
from opendino.layers.attention import Way
from opendino.layers.fast_linear import Products
from opendino.methods.settings import DINOConfig, DINOv2Config, IBOTConfig, KoLeoConfig, TeacherConfig
from opendino.models.presets import BackboneConfig
from opendino.optim.adamw import OptimConfig
from opendino.optim.schedules import steps_of
from opendino.parallel.layout import ParallelConfig
from opendino.train.metrics import LogConfig
from opendino.train.parts import build_method, build_schedules, training_shape
from opendino.train.probe import ProbeConfig

_log = logging.getLogger(__name__)

_MOST_THREADS = 1024  # more than the cores of any machine: a slip of the pen


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and arithmetic of a run.

    Attributes:
        batch_size: images of a step over all processes.
        iterations: steps of the run.
        epochs: passes over the data; when it is above 0 it sets `iterations`.
        precision: of matrix products; parameters, losses and the optimizer are float32 either way.
        device: "auto" takes a CUDA device where there is one.
        accumulate: passes that the batch of a step is learned in, each of a part of it: less memory, the same losses.
        max_not_finite: steps of the run that may be left out, changing nothing, because their loss or a gradient is
            not finite; one more stops it.
        linears: linear layers of float32 on a CPU: by oneDNN, up to twice as fast on processors that are not Intel's,
            or PyTorch's own way; "auto" tries both at the first start, and the run keeps to oneDNN unless PyTorch's is
            clearly faster.
        attention: of bfloat16 on a CPU: PyTorch's fused kernel, or its products written out; "auto" tries both at the
            first start, and the run keeps to the faster one. Anything else is the fused kernel's.
        keep_memory: on a CPU, what a step frees is kept for the next, in large pages where the system has them; this is
            the whole process's.
        threads: of the CPU; 0 takes OMP_NUM_THREADS or tries out which number is fastest, and keeps to it.
    """

    batch_size: int = 2048
    iterations: int = 125_000
    epochs: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    accumulate: int = 1
    max_not_finite: int = 10
    linears: Products = "auto"
    attention: Way = "auto"
    keep_memory: bool = True
    threads: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConfigError(
                f"train.batch_size = {self.batch_size} is too small: the losses compare images; use 2 or more"
            )
        limits = {"iterations": (1, math.inf), "epochs": (0, math.inf), "threads": (0, _MOST_THREADS)}
        limits |= {"accumulate": (1, math.inf), "max_not_finite": (0, math.inf)}
        check_numbers("train", vars(self), limits)


@dataclass(frozen=True)
class ImagesConfig:
    """How the images of `data` are read; see `data/datasets` and `data/decode.py`.

    Attributes:
        value_range: the two values that become 0 and 1 in images of more than 8 bits; by default 0 and 65,535.
        orient: whether the EXIF orientation is applied.
        path_column: column of paths in a manifest; found by its name when empty.
        image_column: column of image bytes in a Parquet file; found by its name when empty.
        label_column: column of labels, for the k-NN alone; found by its name when empty, "none" for no labels.
    """

    value_range: tuple[float, float] | None = None
    orient: bool = True
    path_column: str = ""
    image_column: str = ""
    label_column: str = ""

    def __post_init__(self) -> None:
        low, high = self.value_range or (0, 1)
        if not -math.inf < low < high < math.inf:
            raise ConfigError(
                f"images.value_range = {[low, high]} is no range; use two rising numbers, such as [0, 4095]"
            )


@dataclass(frozen=True)
class PretrainConfig:
    """Every setting of `opendino pretrain`.

    Attributes:
        data: folder of images, list, manifest, or Parquet file.
        output_dir: folder of the run; the same command continues it.
        seed: of everything that is drawn.
    """

    data: str = ""
    output_dir: str = ""
    seed: int = 0
    images: ImagesConfig = field(default_factory=ImagesConfig)
    student: BackboneConfig = field(default_factory=BackboneConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    dino: DINOConfig = field(default_factory=DINOConfig)
    ibot: IBOTConfig = field(default_factory=IBOTConfig)
    koleo: KoLeoConfig = field(default_factory=KoLeoConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    crops: CropsConfig = field(default_factory=CropsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    knn: ProbeConfig = field(default_factory=ProbeConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name in ("data", "output_dir"):
            object.__setattr__(self, name, expand_home(getattr(self, name)))


def check(config: PretrainConfig) -> None:
    """Check what can be checked before the images are opened.

    Raises:
        ConfigError: a setting is missing, or settings contradict each other.
    """
    if not config.data:
        raise ConfigError("data is missing: give data=FOLDER, a folder of images")
    if not config.output_dir:
        raise ConfigError("output_dir is missing: give output_dir=FOLDER, where the run is written")
    check_settings(config)


def check_settings(config: PretrainConfig) -> int:
    """The same without `data` and `output_dir`, as in a recipe; builds the networks on the meta device.

    Returns:
        Parameters of the student's backbone.

    Raises:
        ConfigError: settings contradict each other.
    """
    student = training_shape(config.student, config.crops)
    check_crops(config.crops, student.arguments().get("patch_size", 16))
    size, parts = config.train.batch_size, world_size() * config.train.accumulate
    if size % parts:
        passes = f" in {config.train.accumulate} passes each (train.accumulate)" if config.train.accumulate > 1 else ""
        raise ConfigError(
            f"train.batch_size = {size} cannot be shared equally by {world_size()} processes{passes}; use a multiple "
            f"of {parts}"
        )
    build_schedules(config.optim, config.teacher, config.train.iterations, config.train.batch_size)
    early_steps(config)
    try:
        with torch.device("meta"):
            method = build_method(student, config.crops, method_config(config))
    except ModelError as error:
        raise ConfigError(f"student: {error}") from error
    return sum(parameter.numel() for parameter in method.student["backbone"].parameters())


def fill_in(config: PretrainConfig, images: int) -> PretrainConfig:
    """The config with everything filled in that follows from the rest and from the number of images.

    Raises:
        ConfigError: a warm-up is longer than the run that `train.epochs` comes to, or a decoder is not installed.
    """
    train = config.train
    if train.epochs:
        train = dataclasses.replace(train, iterations=max(math.ceil(train.epochs * images / train.batch_size), 1))
    student = training_shape(config.student, config.crops)
    # What a run was decoded by is kept with it: a resume elsewhere must not take another without a word.
    loader = dataclasses.replace(config.loader, decoder=choose_decoder(config.loader.decoder).decoder)
    config = dataclasses.replace(config, student=student, train=train, loader=loader)
    build_schedules(config.optim, config.teacher, train.iterations, train.batch_size)
    if train.batch_size > images:
        _log.warning(
            "train.batch_size = %d is more than the %d images: every batch holds some of them more than once",
            train.batch_size,
            images,
        )
    return config


def early_steps(config: PretrainConfig) -> int:
    """First steps of the run, in which crops are small where `crops.early_size` says so.

    Raises:
        ConfigError: they are no length, or more than the run has.
    """
    return steps_of(config.crops.early_until, config.train.iterations, "crops.early_until")


def method_config(config: PretrainConfig) -> DINOv2Config:
    """The groups that the method reads."""
    return DINOv2Config(dino=config.dino, ibot=config.ibot, koleo=config.koleo, teacher=config.teacher)
