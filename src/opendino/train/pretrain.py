# SPDX-License-Identifier: Apache-2.0
"""A pretraining run put together: settings, data, student and teacher, and what happens between the steps.

`pretrain(config)` trains or continues; `plan.py` turns a recipe and words into the config; the steps are in `loop.py`.
"""

import contextlib
import dataclasses
import json
import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from opendino.checkpoint import store
from opendino.config import leaves
from opendino.data.collate import PretrainBatch
from opendino.data.datasets import ImageDataset, open_dataset
from opendino.data.loaders import PretrainLoader, pretrain_loader
from opendino.data.normalization import normalization
from opendino.data.preview import preview
from opendino.distributed import is_main, joined, largest, rank, together, world_size
from opendino.errors import CheckpointError, ConfigError, TrainingError
from opendino.files import write_whole
from opendino.layers.attention import use_attention
from opendino.layers.fast_linear import use_fast_linears
from opendino.logs import JsonLines
from opendino.machine import cores
from opendino.memory import keep_freed_memory
from opendino.methods.method import Method
from opendino.parallel.layout import choose_mode, lay_out
from opendino.train import run_folder, state
from opendino.train.config import PretrainConfig, check, early_steps, fill_in, method_config
from opendino.train.glance import Glance
from opendino.train.loop import NotFinite, Run, Stopped, can_go_ahead, train
from opendino.train.metrics import MetricLog
from opendino.train.parts import build_method, build_optimizer, build_schedules, pick_device
from opendino.train.probe import Probe, last_look
from opendino.train.progress import ProgressBar
from opendino.train.run_folder import Claim, Stored
from opendino.train.threads import choose_threads
from opendino.train.upkeep import Upkeep, mend_weights
from opendino.train.ways import settle

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        output_dir: its folder.
        steps: done in all.
        images_seen: in all.
        seconds: of this process.
        figures: of the last look at the teacher; None for one that was not finite.
        seconds_before: of earlier processes, until the checkpoint that this one continued from; what they did after
            it was done again.
        trained: whether this process took a step; False where the run was finished already.
    """

    output_dir: Path
    steps: int
    images_seen: int
    seconds: float
    figures: dict[str, float | None]
    seconds_before: float = 0.0
    trained: bool = True


def pretrain(
    config: PretrainConfig,
    chosen: Mapping[str, Any] | None = None,
    dataset: ImageDataset | None = None,
    build: Callable[[PretrainConfig], Run] | None = None,
) -> Outcome:
    """Train a student and its teacher from images alone, or continue the run in `config.output_dir`.

    On a CPU the whole process keeps from here on what it frees, after the run too (`memory.py`); a process that does
    other things besides leaves that by `train.keep_memory=false`.

    Args:
        config: every setting; `plan.plan` makes one from a recipe and words.
        chosen: those settings among them that were chosen and not given, to be remembered for a resume.
        dataset: the images of `config.data`, where they have been opened already; by default they are opened here.
        build: makes the run at step 0 of the filled-in config; `build_run` by default, for another method another.

    Returns:
        Where the run is and what it came to.

    Raises:
        ConfigError: settings contradict each other, or the folder holds another run.
        DataError: images cannot be read.
        CheckpointError: a checkpoint cannot be read or written.
        NotFinite: the loss or a gradient is not finite.
        Stopped: the process was asked to stop; the run was saved.
    """
    with joined(alone=config.parallel.mode == "fsdp"):
        return _pretrain(config, chosen or {}, dataset, build or build_run)


def _pretrain(
    config: PretrainConfig,
    chosen: Mapping[str, Any],
    dataset: ImageDataset | None,
    build: Callable[[PretrainConfig], Run],
) -> Outcome:
    begun, folder = time.perf_counter(), Path(config.output_dir)
    with together():
        check(config)
        stored = run_folder.read(folder)
        dataset = open_images(config, dataset)
        config = fill_in(config, len(dataset))
    config, tried = settle(config, stored)
    with together():
        if stored is not None:
            run_folder.check_same(folder, stored, config, dataset.facts())
        run = build(config)
        threads = _threads(config, run, stored)
    threads = largest(threads if is_main() else -1)[0]
    computing = {"threads": threads, "processes": world_size(), "device": run.device.type}
    torch.set_num_threads(threads)
    _lay_out(config, run)
    with Claim(folder, kept=stored is not None) as claim:
        writable = stored is None or run_folder.writable(folder)
        with together():
            if stored is not None and writable and is_main():
                claim.lock()  # before the folder is touched: another process may be writing the same run
        before = _restore(run, folder, config.checkpoint)
        if run.step and writable:
            mend_weights(run, folder, run.step * config.train.batch_size, dataset.name)
        if run.step == run.total:
            return dataclasses.replace(_outcome(config, run, folder, begun, before), trained=False)
        with together():
            if not writable:
                raise ConfigError(
                    f"output_dir = {folder} cannot be written, and its run is at step {run.step} of {run.total}; have "
                    "the folder opened for writing, or copy it and name the copy"
                )
        feed = build_feed(config, dataset, run.device, run.step)
        feed.bad.read, feed.bad.failed = before.read, before.bad
        try:
            with together():
                first = next(feed)  # what is wrong with the images shows before anything is written
            with together():
                if is_main() and stored is not None:
                    run_folder.write_continued(folder, stored, config, run.step, computing)
                elif is_main():
                    claim.make()
                    facts = {**dataset.facts(), **computing}
                    run_folder.write(folder, config, Stored({}, dict(chosen), facts, run_folder.command_line()))
                if is_main() and run.step == 0 and config.log.picture:
                    _draw(config, folder, first)
            seconds = partial(_seconds, before.seconds, begun)
            for line in tried:
                _log.info(line)
            keep_memory(config)  # workers are there by now: it is not for them
            _go(config, dataset, run, _Feed(first, feed), claim, seconds)
        finally:
            feed.close()
    return _outcome(config, run, folder, begun, before)


def keep_memory(config: PretrainConfig) -> None:
    """Before the first step: what one on a CPU frees stays with the process, if the settings say so."""
    if pick_device(config.train.device).type == "cpu":
        told = keep_freed_memory().told if config.train.keep_memory else "what becomes of freed memory is left as it is"
        _log.info("train.keep_memory = %s: %s", str(config.train.keep_memory).lower(), told)


def _lay_out(config: PretrainConfig, run: Run) -> None:
    """What of the settings concerns any run, whatever has built it: passes, and where the networks lie."""
    # Machines of different kinds may have chosen differently, each for itself.
    shared = {key: value for key, value in leaves(config).items() if not key.startswith("loader.")}
    number = zlib.crc32(repr(sorted(shared.items())).encode())
    agreed = largest(number, -number) == (number, -number)
    trained = sum(parameter.numel() for parameter in run.method.student.parameters() if parameter.requires_grad)
    with together():
        if not agreed:
            raise ConfigError(
                "the processes of this run have different settings, chosen for different machines; name them, or give "
                "all processes the config.yaml of one"
            )
        choose_mode(config.parallel.mode, run.device.type, trained)
    run.accumulate, run.most_not_finite = config.train.accumulate, config.train.max_not_finite
    padded = config.masks.pads(run.device.type)
    run.layout = lay_out(run.method, run.optimizer, config.parallel, run.precision, padded=padded)
    run.ahead = config.parallel.ahead and can_go_ahead(run)
    if world_size() > 1:
        _log.info("%d processes, parallel.mode = %s", world_size(), run.layout.mode)


def _draw(config: PretrainConfig, folder: Path, first: PretrainBatch) -> None:
    mean, std = normalization(first.global_crops.shape[1], config.crops.mean, config.crops.std)
    picture = preview(first, mean, std)
    write_whole(folder / "first_batch.png", lambda place: picture.save(place, "PNG"))


def open_images(config: PretrainConfig, opened: ImageDataset | None = None) -> ImageDataset:
    """The run's images, with as many channels as the student takes, and decoded as the run says.

    Args:
        config: of the run.
        opened: the same images, opened before all of that was known.

    Raises:
        DataError: they cannot be opened.
    """
    channels = config.student.arguments().get("in_chans", 3)
    if opened is None:
        reading = {item.name: getattr(config.images, item.name) for item in dataclasses.fields(config.images)}
        return open_dataset(config.data, channels=channels, **reading)
    reading = {"value_range": config.images.value_range, "orient": config.images.orient}
    opened.options = dataclasses.replace(opened.options, channels=channels, **reading)
    return opened


def build_run(config: PretrainConfig, make: Callable[[PretrainConfig], Method] | None = None) -> Run:
    """Networks, optimizer and schedules at step 0, on the run's device.

    Args:
        config: filled in.
        make: makes the method, on the CPU; DINOv2 by default.
    """
    device = pick_device(config.train.device)
    if device.type == "cuda" and config.train.precision == "bf16":
        torch.set_float32_matmul_precision("high")  # what autocast leaves in float32 may use TensorFloat-32
    method = make(config) if make else build_method(config.student, config.crops, method_config(config), config.seed)
    method.to(device)
    use_attention(method, config.train.attention)
    if device.type == "cpu" and config.train.linears != "torch":
        use_fast_linears(method)
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
    loader = config.loader
    return pretrain_loader(
        dataset,
        dataclasses.replace(config.crops, early_until=early_steps(config)),
        config.masks,
        patch_size=config.student.arguments().get("patch_size", 16),
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=step,
        workers=cores() // 2 if loader.workers < 0 else loader.workers,
        rank=rank(),
        world=world_size(),
        device=device,
        config=loader,
    )


class _Before(NamedTuple):
    """What earlier processes of a run did, until the checkpoint that this one continues from."""

    read: int = 0
    bad: int = 0
    seconds: float = 0.0


def _restore(run: Run, folder: Path, kept: store.CheckpointConfig) -> _Before:
    """Bring a run to its newest checkpoint, if there is one."""
    newest = None
    with together():
        if is_main():
            store.clean(folder)
            newest = store.latest(folder)
            if newest is not None:
                store.catch_up(folder, kept)
    number = largest(-1 if newest is None else store.step_of(newest))[0]
    if number < 0:
        return _Before()
    with together():
        checkpoint = store.opened(store.folder_of(folder, number), store.Share(rank(), world_size()))
        state.restore(run.method, run.optimizer, checkpoint)
    run.step = checkpoint.step
    run.not_finite = checkpoint.meta.get("not_finite", 0)
    _log.info("continuing from step %d of %d", run.step, run.total)
    # Checkpoints of the first days did not count seconds.
    meta = checkpoint.meta
    return _Before(meta["images_read"], meta["images_bad"], meta.get("seconds", 0.0))


def _seconds(before: float, begun: float) -> float:
    return before + time.perf_counter() - begun


def _go(
    config: PretrainConfig,
    dataset: ImageDataset,
    run: Run,
    feed: "_Feed",
    claim: Claim,
    seconds: Callable[[], float],
) -> None:
    """The run itself, in a folder that is ready for it."""
    probe = Probe(config.knn, dataset, run.device, config.train.precision)
    with together():
        metrics = MetricLog(claim.folder, run.step, config.log, writes=is_main())
    batch_size = config.train.batch_size
    glance = Glance(config.watch, dataset, config.crops, batch_size // world_size(), config.train.precision)
    upkeep = Upkeep(
        claim.folder, metrics, probe, config.checkpoint, batch_size, feed.bad, seconds, config.watch, glance
    )

    def after(run: Run, record: Mapping[str, float]) -> None:
        claim.keep()
        upkeep.after(run, record)

    try:
        if run.step == 0:
            upkeep.begin(run)
        with ProgressBar(run.total, run.step, is_main()) as bar:
            left_out = partial(_leave_out, dataset, claim.folder)
            train(run, feed, bar, after, upkeep.save, left_out, upkeep.due, upkeep.overdue)
        upkeep.finish()
    except Stopped:
        upkeep.finish()
        raise
    except NotFinite as error:
        upkeep.finish()
        _write_down(error, dataset, claim.folder)
        with together():
            raise
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"step {run.step}: out of memory on {run.device} with train.batch_size = {config.train.batch_size}; use "
            f"fewer images a step or dino.prototypes, or smaller crops{', in another output_dir' if run.step else ''}"
        ) from error
    finally:
        upkeep.settle()
        metrics.close()


def _outcome(config: PretrainConfig, run: Run, folder: Path, begun: float, before: _Before) -> Outcome:
    figures = last_look(JsonLines(folder / "metrics.jsonl").read())
    seconds = time.perf_counter() - begun
    return Outcome(folder, run.step, run.step * config.train.batch_size, seconds, figures, before.seconds)


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
    """CPU threads of the run; on a GPU they hardly matter and stay as they are.

    Processes try at the same time, as they will compute, and take what the main one finds.
    """
    facts = {} if stored is None or config.train.threads else stored.facts
    # Runs from before these were noted are taken to go on where they were.
    alike = facts.get("processes", 1) == world_size() and facts.get("device", run.device.type) == run.device.type
    if alike and "threads" in facts:
        return facts["threads"]
    if run.device.type == "cuda":
        return config.train.threads or torch.get_num_threads()
    free = max(cores() - max(config.loader.workers, 0), 1)
    size, rows = config.crops.global_size, min(config.train.batch_size, 32)
    backbone = run.method.student["backbone"]
    images = torch.zeros(rows, config.student.arguments().get("in_chans", 3), size, size)

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16"):
            out = backbone(images)
        out.float().sum().backward()
        run.optimizer.zero_grad(set_to_none=True)

    threads = choose_threads(config.train.threads, free, work)
    _log.info("computing with %d of %d CPU cores", threads, cores())
    return threads


def _leave_out(dataset: ImageDataset, folder: Path, error: NotFinite) -> None:
    _write_down(error, dataset, folder)
    bad = ", ".join(name for name, value in error.record.items() if not math.isfinite(value))
    _log.warning("step %d is left out: not finite: %s; images in not_finite_step_%d.json", error.step, bad, error.step)


def _write_down(error: NotFinite, dataset: ImageDataset, folder: Path) -> None:
    if not is_main():
        return
    record = {
        "step": error.step,
        "record": {key: repr(value) for key, value in error.record.items()},
        "images": {index: dataset.identify(index) for index in error.ids},
    }
    # The disk may be full as well; what is being reported weighs more.
    with contextlib.suppress(CheckpointError):
        write_whole(folder / f"not_finite_step_{error.step}.json", json.dumps(record, indent=1) + "\n")
