# SPDX-License-Identifier: Apache-2.0
"""A pretraining run put together: settings, data, student and teacher, and what happens between the steps.

`pretrain(config)` trains or continues; `plan.py` turns a recipe and words into the config; the steps are in `loop.py`.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from opendino.checkpoint import store
from opendino.checkpoint.store import CheckpointConfig
from opendino.config import check_numbers
from opendino.data.augment import CropsConfig, check_crops
from opendino.data.collate import PretrainBatch
from opendino.data.datasets import ImageDataset, open_dataset
from opendino.data.loaders import LoaderConfig, PretrainLoader, pretrain_loader
from opendino.data.masking import MaskConfig
from opendino.data.normalization import normalization
from opendino.data.preview import preview
from opendino.distributed import is_main, rank, world_size
from opendino.errors import CheckpointError, ConfigError, ModelError, TrainingError
from opendino.files import write_whole
from opendino.logs import JsonLines
from opendino.methods.dinov2 import DINOConfig, DINOv2Config, IBOTConfig, KoLeoConfig, TeacherConfig
from opendino.models.presets import BackboneConfig
from opendino.optim.adamw import OptimConfig
from opendino.train import run_folder, state
from opendino.train.loop import NotFinite, Run, train
from opendino.train.metrics import LogConfig, MetricLog
from opendino.train.parts import build_method, build_optimizer, build_schedules, pick_device, training_shape
from opendino.train.probe import Probe, ProbeConfig, last_look
from opendino.train.progress import ProgressBar
from opendino.train.run_folder import Claim, Stored
from opendino.train.settings import look_at_machine
from opendino.train.threads import choose_threads
from opendino.train.upkeep import Upkeep, mend_weights

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
        threads: of the CPU; 0 takes OMP_NUM_THREADS or tries out which number is fastest, and keeps to it.
    """

    batch_size: int = 2048
    iterations: int = 125_000
    epochs: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ConfigError(
                f"train.batch_size = {self.batch_size} is too small: the losses compare images; use 2 or more"
            )
        limits = {"iterations": (1, math.inf), "epochs": (0, math.inf), "threads": (0, _MOST_THREADS)}
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
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    knn: ProbeConfig = field(default_factory=ProbeConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        output_dir: its folder.
        steps: done in all.
        images_seen: in all.
        seconds: of this process.
        figures: of the last look at the teacher; None for one that was not finite.
    """

    output_dir: Path
    steps: int
    images_seen: int
    seconds: float
    figures: dict[str, float | None]


def pretrain(
    config: PretrainConfig, chosen: Mapping[str, Any] | None = None, dataset: ImageDataset | None = None
) -> Outcome:
    """Train a student and its teacher from images alone, or continue the run in `config.output_dir`.

    Args:
        config: every setting; `plan.plan` makes one from a recipe and words.
        chosen: those settings among them that were chosen and not given, to be remembered for a resume.
        dataset: the images of `config.data`, where they have been opened already; by default they are opened here.

    Returns:
        Where the run is and what it came to.

    Raises:
        ConfigError: settings contradict each other, or the folder holds another run.
        DataError: images cannot be read.
        CheckpointError: a checkpoint cannot be read or written.
        NotFinite: the loss or a gradient is not finite.
        Stopped: the process was asked to stop; the run was saved.
    """
    begun, folder = time.perf_counter(), Path(config.output_dir)
    check(config)
    stored = run_folder.read(folder)
    dataset = open_images(config, dataset)
    config = settle(config, len(dataset))
    if stored is not None:
        run_folder.check_same(folder, stored, config, {"images": len(dataset)})
    run = build_run(config)
    facts = {"images": len(dataset), "threads": _threads(config, run, stored)}
    torch.set_num_threads(facts["threads"])
    with Claim(folder, kept=stored is not None) as claim:
        writable = stored is None or run_folder.writable(folder)
        if stored is not None and writable:
            claim.lock()  # before the folder is touched: another process may be writing the same run
        counted = _restore(run, folder)
        if run.step and writable:
            mend_weights(run, folder, run.step * config.train.batch_size, dataset.name)
        if run.step == run.total:
            return _outcome(config, run, folder, begun)
        if not writable:
            raise ConfigError(
                f"output_dir = {folder} cannot be written, and its run is at step {run.step} of {run.total}; have the "
                "folder opened for writing, or copy it and name the copy"
            )
        feed = build_feed(config, dataset, run.device, run.step)
        feed.bad.read, feed.bad.failed = counted
        try:
            first = next(feed)  # what is wrong with the images shows before anything is written
            if stored is None:
                claim.make()
                run_folder.write(folder, config, Stored({}, dict(chosen or {}), facts, run_folder.command_line()))
            if run.step == 0 and config.log.picture:
                mean, std = normalization(dataset.options.channels, config.crops.mean, config.crops.std)
                picture = preview(first, mean, std)
                write_whole(folder / "first_batch.png", lambda partial: picture.save(partial, "PNG"))
            _go(config, dataset, run, _Feed(first, feed), claim)
        finally:
            feed.close()
    return _outcome(config, run, folder, begun)


def check(config: PretrainConfig) -> None:
    """Check what can be checked before the images are opened.

    Raises:
        ConfigError: a setting is missing, or settings contradict each other.
    """
    if not config.data:
        raise ConfigError("data is missing: give data=FOLDER, a folder of images")
    if not config.output_dir:
        raise ConfigError("output_dir is missing: give output_dir=FOLDER, where the run is written")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("WORLD_SIZE is above 1: several processes were started, a run is one so far; start one")
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
    if config.train.batch_size % world_size():
        raise ConfigError(
            f"train.batch_size = {config.train.batch_size} cannot be shared equally by {world_size()} processes; "
            f"use a multiple of {world_size()}"
        )
    build_schedules(config.optim, config.teacher, config.train.iterations, config.train.batch_size)
    try:
        with torch.device("meta"):
            method = build_method(student, config.crops, _method_config(config))
    except ModelError as error:
        raise ConfigError(f"student: {error}") from error
    return sum(parameter.numel() for parameter in method.student["backbone"].parameters())


def settle(config: PretrainConfig, images: int) -> PretrainConfig:
    """The config with everything filled in that follows from the rest and from the number of images.

    Raises:
        ConfigError: a warm-up is longer than the run that `train.epochs` comes to.
    """
    train = config.train
    if train.epochs:
        train = dataclasses.replace(train, iterations=max(math.ceil(train.epochs * images / train.batch_size), 1))
    student = training_shape(config.student, config.crops)
    config = dataclasses.replace(config, student=student, train=train)
    build_schedules(config.optim, config.teacher, train.iterations, train.batch_size)
    if train.batch_size > images:
        _log.warning(
            "train.batch_size = %d is more than the %d images: every batch holds some of them more than once",
            train.batch_size,
            images,
        )
    return config


def open_images(config: PretrainConfig, opened: ImageDataset | None = None) -> ImageDataset:
    """The run's images, with as many channels as the student takes.

    Args:
        config: of the run.
        opened: the same images, opened with other channels.

    Raises:
        DataError: they cannot be opened.
    """
    channels = config.student.arguments().get("in_chans", 3)
    if opened is None:
        reading = {item.name: getattr(config.images, item.name) for item in dataclasses.fields(config.images)}
        return open_dataset(config.data, channels=channels, **reading)
    opened.options = dataclasses.replace(opened.options, channels=channels)
    return opened


def build_run(config: PretrainConfig) -> Run:
    """Networks, optimizer and schedules at step 0, on the run's device."""
    device = pick_device(config.train.device)
    if device.type == "cuda" and config.train.precision == "bf16":
        torch.set_float32_matmul_precision("high")  # what autocast leaves in float32 may use TensorFloat-32
    method = build_method(config.student, config.crops, _method_config(config), config.seed).to(device)
    return Run(
        method=method,
        optimizer=build_optimizer(method, config.optim),
        schedules=build_schedules(config.optim, config.teacher, config.train.iterations, config.train.batch_size),
        total=config.train.iterations,
        seed=config.seed,
        precision=config.train.precision,
        device=device,
        clip_grad=config.optim.clip_grad,
    )


def build_feed(config: PretrainConfig, dataset: ImageDataset, device: torch.device, step: int) -> PretrainLoader:
    """The batches of a run from a step on.

    Raises:
        DataError: no image can be read.
    """
    loader, cores = config.loader, look_at_machine(config.train.device).cores
    return pretrain_loader(
        dataset,
        config.crops,
        config.masks,
        patch_size=config.student.arguments().get("patch_size", 16),
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=step,
        workers=cores // 2 if loader.workers < 0 else loader.workers,
        rank=rank(),
        world=world_size(),
        device=device,
        config=loader,
    )


def _method_config(config: PretrainConfig) -> DINOv2Config:
    return DINOv2Config(dino=config.dino, ibot=config.ibot, koleo=config.koleo, teacher=config.teacher)


def _restore(run: Run, folder: Path) -> tuple[int, int]:
    """Bring a run to its newest checkpoint, if there is one; images read and images that were bad until then."""
    store.clean(folder)
    newest = store.latest(folder)
    if newest is None:
        return 0, 0
    checkpoint = store.load(newest)
    state.restore(run.method, run.optimizer, checkpoint)
    run.step = checkpoint.step
    _log.info("continuing from step %d of %d", run.step, run.total)
    return checkpoint.meta["images_read"], checkpoint.meta["images_bad"]


def _go(config: PretrainConfig, dataset: ImageDataset, run: Run, feed: "_Feed", claim: Claim) -> None:
    """The run itself, in a folder that is ready for it."""
    probe = Probe(config.knn, dataset, run.device, config.train.precision)
    metrics = MetricLog(claim.folder, run.step, config.log)
    upkeep = Upkeep(claim.folder, metrics, probe, config.checkpoint, config.train.batch_size, feed.bad)

    def after(run: Run, record: Mapping[str, float]) -> None:
        claim.keep()
        upkeep.after(run, record)

    try:
        if run.step == 0:
            upkeep.begin(run)
        with ProgressBar(run.total, run.step, is_main()) as bar:
            train(run, feed, bar, after, upkeep.save)
    except NotFinite as error:
        _write_down(error, dataset, claim.folder)
        raise
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"step {run.step}: out of memory on {run.device} with train.batch_size = {config.train.batch_size}; use "
            f"fewer images a step or dino.prototypes, or smaller crops{', in another output_dir' if run.step else ''}"
        ) from error
    finally:
        metrics.close()


def _outcome(config: PretrainConfig, run: Run, folder: Path, begun: float) -> Outcome:
    figures = last_look(JsonLines(folder / "metrics.jsonl").read())
    return Outcome(folder, run.step, run.step * config.train.batch_size, time.perf_counter() - begun, figures)


class _Feed:
    """A loader whose first batch has been taken out already."""

    def __init__(self, first: PretrainBatch, loader: PretrainLoader) -> None:
        self._first: PretrainBatch | None = first
        self._loader = loader
        self.bad = loader.bad

    @property
    def waited(self) -> float:
        """Seconds spent waiting for data so far."""
        return self._loader.waited

    def __next__(self) -> PretrainBatch:
        first, self._first = self._first, None
        return next(self._loader) if first is None else first


def _threads(config: PretrainConfig, run: Run, stored: Stored | None) -> int:
    """CPU threads of the run; on a GPU they hardly matter and stay as they are."""
    if stored is not None and not config.train.threads:
        return stored.facts["threads"]
    if run.device.type == "cuda":
        return config.train.threads or torch.get_num_threads()
    cores = look_at_machine("cpu").cores
    free = max(cores - max(config.loader.workers, 0), 1)
    size, rows = config.crops.global_size, min(config.train.batch_size, 32)
    backbone = run.method.student["backbone"]
    images = torch.zeros(rows, config.student.arguments().get("in_chans", 3), size, size)

    def work() -> None:
        backbone(images).sum().backward()
        run.optimizer.zero_grad(set_to_none=True)

    threads = choose_threads(config.train.threads, free, work)
    _log.info("computing with %d of %d CPU cores", threads, cores)
    return threads


def _write_down(error: NotFinite, dataset: ImageDataset, folder: Path) -> None:
    record = {
        "step": error.step,
        "record": {key: repr(value) for key, value in error.record.items()},
        "images": {index: dataset.identify(index) for index in error.ids},
    }
    # The disk may be full as well; what is being reported weighs more.
    with contextlib.suppress(CheckpointError):
        write_whole(folder / f"not_finite_step_{error.step}.json", json.dumps(record, indent=1) + "\n")
