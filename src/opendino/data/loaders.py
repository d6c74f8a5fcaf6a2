# SPDX-License-Identifier: Apache-2.0
"""The feed of a pretraining run: step number -> batch, by any number of worker processes.

A worker is given a step and makes its whole batch. Every random draw is keyed by (seed, purpose, sample or step), so
batches are equal bit for bit whatever the number of workers, and a run resumes at any step without any state.
"""

import itertools
import logging
import math
import signal
import sys
import time
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from opendino.config import check_numbers
from opendino.data.ahead import Ahead, NotBrought, OnItsWay, bring_to
from opendino.data.augment import Crops, CropsConfig, MultiCrop, check_crops
from opendino.data.collate import PretrainBatch, Skipped, collate
from opendino.data.datasets import ImageDataset
from opendino.data.fast import Decoder, choose_decoder, fast_views, keep_to_one_thread
from opendino.data.masking import BatchMasks, MaskConfig, draw_masks, mask_shares
from opendino.data.normalization import normalization
from opendino.data.samplers import InfiniteSampler, keyed_rng
from opendino.data.sizes import CropSizes
from opendino.errors import ConfigError, DataError

PROBED = 100
"""Images tried before a data set is given up as unreadable."""

REPLACEMENTS = 50
"""Other images tried for one that cannot be read."""

# More workers than cores are the user's choice: a slow disk may need them.
_MANY_WORKERS = "This DataLoader will create"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoaderConfig:
    """How a run is fed.

    Attributes:
        workers: processes that decode and augment beside the training process; 0 does it in the training process,
            -1 leaves the choice to the run.
        prefetch: batches that each worker prepares ahead.
        max_bad_rate: share of images that may be unreadable before the run stops, 0 to 1.
        min_bad_count: unreadable images that are tolerated in any case.
        decoder: "pillow" gives the published numbers, "fast" the same views by simplejpeg and OpenCV at several times
            the speed, equal but for rounding (see `fast.py`); "auto" is fast where these are installed.
        photometric: who flips, colours and blurs the crops: the "worker" that cut them, or the "device", for whole
            batches (see `effects.py`); "auto" is the device on CUDA.
        thread: whether a thread takes batches from the workers and brings them to the device while the step before
            them runs; "auto" on CUDA, where a copy costs time. It holds one batch more on the device.
    """

    workers: int = -1
    prefetch: int = 2
    max_bad_rate: float = 0.01
    min_bad_count: int = 10
    decoder: Decoder = "pillow"
    photometric: Literal["auto", "worker", "device"] = "auto"
    thread: Literal["auto", "always", "never"] = "auto"

    def __post_init__(self) -> None:
        # -1 workers: to be chosen
        check_numbers(
            "loader", vars(self), {"workers": (-1, 1000), "prefetch": (1, 1000), "min_bad_count": (0, math.inf)}
        )
        if not 0 <= self.max_bad_rate <= 1:
            raise ConfigError(f"loader.max_bad_rate = {self.max_bad_rate} is not a share of the images; use 0 to 1")


def require_readable(dataset: ImageDataset) -> None:
    """Check that the data set has an image that can be decoded.

    Raises:
        DataError: none of `PROBED` images, spread over the data set, can be.
    """
    tried = np.unique(np.linspace(0, len(dataset) - 1, PROBED).astype(np.int64)).tolist()
    reasons = []
    for index in tried:
        try:
            dataset.image(index)
        except DataError as error:
            reasons.append(str(error))
        else:
            return
    raise DataError(
        f"{dataset.name}: none of the {len(tried)} images tried can be read, such as {reasons[0]}; check the files or "
        "name another data set"
    )


class _Steps(Dataset):
    """Batches by step number; the part of the loader that runs in the workers."""

    def __init__(
        self,
        dataset: ImageDataset,
        sizes: CropSizes,
        masks: MaskConfig,
        sampler: InfiniteSampler,
        batch_size: int,
        *,
        fast: bool,
        bare: bool,
    ) -> None:
        self.dataset, self.sizes, self.masks = dataset, sizes, masks
        self.sampler, self.batch_size = sampler, batch_size
        self.fast, self.bare = fast, bare

    def __getitem__(self, index: int) -> "PretrainBatch | _Failure":
        step = index
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of oddities in files; the user cannot act on each
                return self._batch(step)
        except DataError as error:
            return _Failure(str(error))
        except Exception as error:
            _log.debug("step %d", step, exc_info=True)
            return _Failure(f"the batch of step {step} cannot be made ({type(error).__name__}: {error})")

    def _batch(self, step: int) -> PretrainBatch:
        sampler = self.sampler
        here = self.batch_size // sampler.world
        positions = step * self.batch_size + sampler.rank + sampler.world * np.arange(here)
        crops = self.sizes.at(step)
        draw = MultiCrop(crops, self.dataset.options.channels, bare=self.bare)
        views: list[Crops] = []
        ids: list[int] = []
        skipped: list[Skipped] = []
        for position, index in zip(positions.tolist(), sampler.at(positions).tolist(), strict=True):
            made, index = self._readable(draw, position, index, skipped)
            views.append(made)
            ids.append(index)
        side = crops.global_size // self.sizes.patch_size
        batch = collate(views, self._masks(step, positions, (side, side)), ids, skipped)
        return batch.pad(2 * self.batch_size, self.masks) if self.masks.pad == "always" else batch

    def _masks(self, step: int, positions: np.ndarray, grid: tuple[int, int]) -> BatchMasks:
        """Masks of both global crops of the images at these positions, the same on any number of processes.

        How much of which crop is masked is drawn for the whole step, where on the crop for each crop.
        """
        sampler = self.sampler
        of_all = mask_shares(2 * self.batch_size, self.masks, keyed_rng(sampler.seed, "mask shares", step))
        shares = of_all.reshape(2, self.batch_size)[:, sampler.rank :: sampler.world].reshape(-1)
        rngs = (
            keyed_rng(sampler.seed, f"masks of crop {crop}", position)
            for crop in (0, 1)
            for position in positions.tolist()
        )
        return draw_masks(shares, grid, self.masks, rngs)

    def _readable(self, crops: MultiCrop, position: int, index: int, skipped: list[Skipped]) -> tuple[Crops, int]:
        """Views of the image at this position of the run, or of the first readable one of those drawn to replace it."""
        others = keyed_rng(self.sampler.seed, "replacements", position)
        for _ in range(REPLACEMENTS):
            try:
                return self._views(crops, index, self._drawn(crops.config, position, index)), index
            except DataError as error:
                skipped.append(Skipped(index, self.dataset.identify(index), str(error)))
                index = int(others.integers(len(self.dataset)))
        raise DataError(
            f"{self.dataset.name}: {REPLACEMENTS} images in a row cannot be read, such as {skipped[-1].reason}; check "
            "the files"
        )

    def _drawn(self, crops: CropsConfig, position: int, index: int) -> np.random.Generator:
        """Random numbers of an image's views: of its position in the run, or of one of its few fixed views."""
        if not crops.fixed_views:
            return keyed_rng(self.sampler.seed, "crops", position)
        epoch = position // len(self.dataset)
        return keyed_rng(self.sampler.seed, f"fixed view {epoch % crops.fixed_views}", index)

    def _views(self, crops: MultiCrop, index: int, rng: np.random.Generator) -> Crops:
        if self.fast:
            return fast_views(self.dataset, index, crops, rng)
        return crops(self.dataset.image(index), rng)


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker, as a sentence."""

    message: str


class BadImages:
    """Counts images that could not be read, and stops the run when they are too many.

    Args:
        name: of the data set.
        max_rate: share of the different images read that may fail; how often one has come does not count.
        min_count: different images that may fail in any case.
        images: in the data set.
    """

    def __init__(self, name: str, max_rate: float, min_count: int, images: int) -> None:
        self.name, self.max_rate, self.min_count, self.images = name, max_rate, min_count, images
        self.read = self.failed = 0
        self.examples: list[str] = []
        self._logged: set[int] = set()

    def add(self, batch: PretrainBatch) -> None:
        """Count one batch; each bad image is logged once.

        Raises:
            DataError: too many images failed.
        """
        self.read += batch.images + len(batch.skipped)
        self.failed += len(batch.skipped)
        for bad in batch.skipped:
            if bad.index not in self._logged:
                self._logged.add(bad.index)
                _log.warning("skipped %s", bad.reason)
            if len(self.examples) < 3 and bad.reason not in self.examples:
                self.examples.append(bad.reason)
        different = min(self.read, self.images)
        if len(self._logged) > max(self.min_count, self.max_rate * different):
            raise DataError(
                f"{self.name}: {len(self._logged)} of {different} images read so far cannot be decoded, more than "
                f"loader.max_bad_rate={self.max_rate:g}: {'; '.join(self.examples)}; repair or remove them, or allow "
                f"more, such as loader.max_bad_rate={min(2 * len(self._logged) / different, 1):.2g}"
            )


class PretrainLoader:
    """Endless iterator over the batches of one process, in the order of steps.

    Attributes:
        waited: seconds that `next` has waited for data so far (with 0 workers: the time of making it).
        step: step of the next batch.
        bad: what could not be read.
        slow: images that the fast decoder had to leave to Pillow so far.
    """

    def __init__(
        self,
        steps: _Steps,
        start_step: int,
        workers: int,
        prefetch: int,
        bad: BadImages,
        normalization: tuple[tuple[float, ...], tuple[float, ...]],
        device: torch.device,
        *,
        thread: bool,
    ) -> None:
        self.step, self.waited, self.bad, self.slow = start_step, 0.0, bad, 0
        self._mean_std, self._device, self._thread = normalization, device, thread
        self._steps = _Count(start_step)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_MANY_WORKERS)
            self._loader = DataLoader(
                steps,
                batch_size=None,
                sampler=self._steps,
                num_workers=workers,
                collate_fn=_unchanged,
                prefetch_factor=prefetch if workers else None,
                pin_memory=device.type == "cuda",
                multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
                worker_init_fn=_begin_worker,
                generator=torch.Generator(),  # nothing is drawn from it; without it the global one would be moved on
            )
        self._running: list[
            Iterator[PretrainBatch | OnItsWay | _Failure | NotBrought]
        ] = []  # the workers of now, or nothing
        # The workers ignore SIGTERM, by which Python would end them at its own end, so they are told before that.
        weakref.finalize(self, _end, self._running)

    def __iter__(self) -> "PretrainLoader":
        return self

    def __next__(self) -> PretrainBatch:
        started = time.perf_counter()
        batch = self._fetch()
        self.waited += time.perf_counter() - started
        if isinstance(batch, _Failure):
            self.close()
            raise DataError(batch.message)
        if isinstance(batch, NotBrought):
            self.close()
            raise batch.error
        batch = batch.take() if isinstance(batch, OnItsWay) else batch.to(self._device, non_blocking=True)
        self.bad.add(batch)
        self._count_slow(batch)
        self.step += 1
        return batch.finish(*self._mean_std)

    def _fetch(self) -> "PretrainBatch | OnItsWay | _Failure | NotBrought":
        try:
            if not self._running:
                self._steps.start = self.step
                self._running.append(_start(self._loader))
        except RuntimeError as error:
            raise self._no_data(error) from error
        # From here on the workers are known, and are ended whatever happens.
        if self._thread and not isinstance(self._running[0], Ahead):
            self._running[0] = Ahead(self._running[0], bring_to(self._device))
        try:
            return next(self._running[0])
        except RuntimeError as error:
            raise self._no_data(error) from error

    def _no_data(self, error: RuntimeError) -> DataError:
        self.close()
        return DataError(
            f"no data came for step {self.step} ({error}); if one of {self._loader.num_workers} workers died for "
            "lack of memory, set loader.workers to fewer, or 0"
        )

    def _count_slow(self, batch: PretrainBatch) -> None:
        if batch.slow and not self.slow:
            _log.info("images that the fast decoder cannot take, such as CMYK and palettes, are left to Pillow")
        self.slow += batch.slow

    def close(self) -> None:
        """End the worker processes; the loader starts again at its step when it is used again."""
        _end(self._running)


def _begin_worker(worker: int) -> None:  # noqa: ARG001 (the signature that DataLoader calls)
    """Leave signals that are sent to the whole process group to the training process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Count:
    """Steps from one on."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


def _end(running: list[Iterator]) -> None:
    while running:
        batches = running.pop()
        if isinstance(batches, Ahead):
            batches.close()
            batches = batches.items
        stop = getattr(batches, "_shutdown_workers", None)
        if stop is not None:
            stop()


def _unchanged(batch: object) -> object:
    return batch


def _start(loader: DataLoader) -> Iterator:
    with warnings.catch_warnings():
        # Python 3.12 warns that threads and fork do not mix; the workers use none of the parent's threads.
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=_MANY_WORKERS)
        return iter(loader)


def pretrain_loader(
    dataset: ImageDataset,
    crops: CropsConfig,
    masks: MaskConfig,
    patch_size: int,
    batch_size: int,
    seed: int = 0,
    start_step: int = 0,
    workers: int = 0,
    *,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    config: LoaderConfig | None = None,
) -> PretrainLoader:
    """Batches of a pretraining run from a step on, without end.

    Args:
        dataset: images; its number of channels is the model's.
        crops: the views of an image; its `early_until` in steps.
        masks: the masks of the global crops.
        patch_size: side of a patch, pixels.
        batch_size: images of a step over all processes; a multiple of `world`.
        seed: of the order of images, their crops and the masks.
        start_step: step of the first batch.
        workers: processes that make batches; 0 makes them in this one.
        rank: number of this process; it gets positions rank, rank + world, ... of every step.
        world: number of processes.
        device: where the batches are handed out; crops travel there as uint8 and are normalised there.
        config: batches made ahead, how many unreadable images are tolerated, and who decodes and colours; its
            `workers` is not read.

    Returns:
        An iterator with the attributes `waited` and `bad`, and a method `close`.

    Raises:
        ConfigError: a crop size is no multiple of the patch size, the batch cannot be shared by the processes, or the
            fast decoder is not installed.
        DataError: no image of the data set can be read.
    """
    check_crops(crops, patch_size)
    if batch_size < world or batch_size % world:
        raise ConfigError(
            f"batch_size = {batch_size} cannot be shared equally by {world} processes; use a multiple of {world}"
        )
    config, device = config or LoaderConfig(), torch.device(device)
    decoder = choose_decoder(config.decoder)
    on_device = config.photometric == "device" or (config.photometric == "auto" and device.type == "cuda")
    where = "the device" if on_device else "the workers"
    # A run has chosen before, and said why; then the setting no longer tells a choice from a wish.
    why = f" ({decoder.reason})" if config.decoder == "auto" else ""
    _log.info("decoder %s%s; colours by %s", decoder.decoder, why, where)
    require_readable(dataset)
    channels = dataset.options.channels
    fast = decoder.decoder == "fast"
    if fast:
        keep_to_one_thread()
    sampler = InfiniteSampler(len(dataset), seed, 0, rank, world)
    sizes = CropSizes(crops, patch_size, seed)
    masks = replace(masks, pad="always" if masks.pads(device.type) else "never")
    steps = _Steps(dataset, sizes, masks, sampler, batch_size, fast=fast, bare=on_device)
    bad = BadImages(dataset.name, config.max_bad_rate, config.min_bad_count, len(dataset))
    mean_std = normalization(channels, crops.mean, crops.std)
    thread = config.thread == "always" or (config.thread == "auto" and device.type == "cuda")
    return PretrainLoader(
        steps, start_step, workers, config.prefetch, bad, mean_std, device, thread=thread and workers > 0
    )
