# SPDX-License-Identifier: Apache-2.0
"""What happens between the steps of a run: records, looks at the teacher, checkpoints; called by `loop.py`."""

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from opendino.checkpoint import store
from opendino.checkpoint.hub import RUN_WEIGHTS
from opendino.checkpoint.store import CheckpointConfig
from opendino.checkpoint.weights import read_config, save_weights
from opendino.config import read_yaml
from opendino.data.loaders import BadImages
from opendino.distributed import is_main, largest, rank, together, world_size
from opendino.errors import CheckpointError
from opendino.eval.watch import Watch, WatchConfig
from opendino.models.vision_transformer import VisionTransformer
from opendino.train import state
from opendino.train.background import Background
from opendino.train.glance import Glance
from opendino.train.loop import Run
from opendino.train.metrics import MetricLog
from opendino.train.probe import Probe
from opendino.train.run_folder import versions

_log = logging.getLogger(__name__)

_LINES = 20  # of glances on the terminal in a run
_MUCH = 0.05  # share of the time, above which looking is too much
_SHOWN = {
    "effective_rank": ("rank", ".1f"),
    "mean_cosine": ("mean cosine", ".2f"),
    "prototypes_used": ("prototypes used", ".0f"),
    "entropy_of_mean": ("entropy of the mean", ".3f"),
    "mean_entropy": ("mean entropy", ".3f"),
    "teacher_kl": ("KL", ".3f"),
}


def write_weights(run: Run, folder: Path, images_seen: int, images: str) -> None:
    """Write the teacher's backbone into `weights/` of a run's folder, and other results beside it.

    Every process calls it, process 0 writes.
    """
    results = run.layout.plain(run.method, run.method.results())
    with together():
        if is_main():
            _write_results(results, folder, {"step": run.step, "images_seen": images_seen, "images": images})


def _write_results(results: Mapping[str, nn.Module], folder: Path, origin: Mapping[str, Any]) -> None:
    origin = {**origin, "decoding": _decoding(folder)}
    # The run's own last: `mend_weights` looks at its step alone.
    for name, backbone in reversed(list(results.items())):
        home = folder / "students" / name if name else folder
        save_weights(cast("VisionTransformer", backbone), home / RUN_WEIGHTS, origin)


def mend_weights(run: Run, folder: Path, images_seen: int, images: str) -> None:
    """Write `weights/` again if they are not of the run's step: it was killed between a checkpoint and them."""
    try:
        step = read_config(folder / RUN_WEIGHTS)["provenance"]["step"]
    except (CheckpointError, KeyError, TypeError):
        step = None
    # One process says no, and all write.
    if largest(int(step != run.step))[0]:
        _log.info("writing %s/ again: they are not those of step %d", RUN_WEIGHTS, run.step)
        write_weights(run, folder, images_seen, images)


def _decoding(folder: Path) -> dict[str, Any]:
    """How the run decodes its images, so that its weights can be shown others alike, wherever they are copied to."""
    settings = folder / "config.yaml"
    reading = read_yaml(settings).get("images", {}) if settings.is_file() else {}
    return {name: reading[name] for name in ("value_range", "orient") if name in reading}


class Upkeep:
    """Keeps the files of a run.

    Args:
        folder: of the run.
        metrics: where records go.
        probe: looks at the teacher.
        checkpoints: when they are written.
        batch_size: images of a step over all processes.
        bad: counts the images that could not be read.
        seconds: of the run so far, those of earlier processes included.
        watch: what counts as collapsed, and what is done about it; None for the defaults.
        glance: looks at a few images without labels more often than the probe does; None for never.
    """

    def __init__(
        self,
        folder: Path,
        metrics: MetricLog,
        probe: Probe,
        checkpoints: CheckpointConfig,
        batch_size: int,
        bad: BadImages,
        seconds: Callable[[], float] = lambda: 0.0,
        watch: WatchConfig | None = None,
        glance: Glance | None = None,
    ) -> None:
        self.folder, self.metrics, self.probe, self.bad = folder, metrics, probe, bad
        self._checkpoints, self._batch_size, self._seconds = checkpoints, batch_size, seconds
        self._watch, self._glance = Watch(watch or WatchConfig()), glance
        self._looking, self._probe_seconds = Share(), 0.0
        self._writer, self._saved = Background(checkpoints.asynchronous), -1
        self._saved_at = time.monotonic()

    def begin(self, run: Run) -> None:
        """Look at the untrained teacher, which everything later is compared with."""
        if run.step:
            return
        if self.probe.config.every:
            _log.info("looking at the teacher: %s", self.probe.note)
        self._look_if_due(run, run.schedules.teacher_temp(0))

    def due(self, step: int) -> bool:
        """Whether anything is written, looked at or saved after so many steps, but for the last."""
        every = (self.metrics.config.every, self._checkpoints.every, self.probe.config.every)
        looks = self._glance is not None and self._glance.due(step)
        return step == 1 or looks or any(distance and step % distance == 0 for distance in every)

    def overdue(self) -> bool:
        """Whether `checkpoint.minutes` have passed since the last checkpoint or the start; process 0 alone says so."""
        minutes = self._checkpoints.minutes
        return is_main() and minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def after(self, run: Run, record: Mapping[str, float]) -> None:
        """Everything that is due after a step; a checkpoint last, so that it never lacks what belongs to its step."""
        step, last = run.step, run.step == run.total
        if step % self.metrics.config.every == 0 or last or step == 1:
            more = {"images_seen": self.images_seen(run), "skipped": self.bad.failed, "not_finite": run.not_finite}
            with together():
                self.metrics.write(step, {**record, **more})
        self._look_if_due(run, record["teacher_temp"])
        if last and self._looking.seconds:
            self.metrics.write(step, self._looking.record())
            self._looking.tell(self.probe.config.every, run.total)
        if step % self._checkpoints.every == 0 or last:
            self.save(run)

    def save(self, run: Run) -> None:
        """Write a checkpoint, and the teacher's backbone as weights that can be opened by themselves.

        Every process calls it. Process 0 writes what all hold, each process its share of what is shared out; with
        `checkpoint.asynchronous` this goes on behind the steps that follow.
        """
        if self._saved == run.step:
            return
        self.finish()
        share = store.Share(rank(), world_size()) if run.layout.mode == "fsdp" else store.Share()
        with together():
            if is_main():
                self.metrics.to_disk()
                if share.of > 1:
                    store.begin(self.folder, run.step)
        tensors = state.own_share(state.collect(run.method, run.optimizer), share.number)
        results = run.layout.plain(run.method, run.method.results())
        meta = self._meta(run)
        writes = is_main() or share.of > 1
        if self._checkpoints.asynchronous:
            tensors = state.copied(tensors) if writes else {}
            results = {name: copy.deepcopy(result).to("cpu") for name, result in results.items()} if is_main() else {}
        if writes:
            self._writer.start(partial(self._write, run.step, tensors, results, meta, share))
        if not self._checkpoints.asynchronous:
            self.finish()
        self._saved, self._saved_at = run.step, time.monotonic()

    def finish(self) -> None:
        """Wait until the last checkpoint is on the disk, on all processes.

        Raises:
            CheckpointError: it could not be written.
        """
        with together():
            self._writer.wait()

    def settle(self) -> None:
        """Leave nothing half-done behind where the run ends by an error; this process alone."""
        self._writer.settle()

    def _write(
        self,
        step: int,
        tensors: dict[str, dict[str, Tensor]],
        results: Mapping[str, nn.Module],
        meta: Mapping[str, Any],
        share: store.Share,
    ) -> None:
        store.save(self.folder, step, tensors, meta, self._checkpoints, share)
        if share.number == 0:
            origin = {"step": step, "images_seen": meta["images_seen"], "images": self.bad.name}
            _write_results(results, self.folder, origin)
        _log.debug("checkpoint of step %d", step)

    def _meta(self, run: Run) -> dict[str, Any]:
        return {
            "images_seen": self.images_seen(run),
            "images_read": self.bad.read,
            "images_bad": self.bad.failed,
            "not_finite": run.not_finite,
            "seconds": round(self._seconds(), 3),
            "world_size": world_size(),
            "mode": run.layout.mode,
            "versions": versions(),
        }

    def images_seen(self, run: Run) -> int:
        """Images that all processes have been trained on so far, counted as often as they came."""
        return run.step * self._batch_size

    def _look_if_due(self, run: Run, teacher_temp: float) -> None:
        """What the probe and the glance are due for at this step, at the start and at the end both; then the watch."""
        every, ends = self.probe.config.every, run.step in (0, run.total)
        probes = every > 0 and (ends or (run.step % every == 0 and self._has_time(run)))
        glances = self._glance is not None and (probes or self._glance.due(run.step) or (ends and self._glance.due(0)))
        if not (probes or glances):
            return
        with self._looking, run.layout.whole_teacher(run.method):
            before = time.perf_counter()
            record = self.probe(run.method, teacher_temp) if probes else {}
            self._probe_seconds = time.perf_counter() - before if probes else self._probe_seconds
            seen = self._glance(run.method, teacher_temp) if glances and self._glance is not None else {}
        if record | seen:
            with together():
                self.metrics.write(run.step, record | seen)
        if probes:
            _log.info("step %d: teacher's %s", run.step, _sentence(record))
        elif self._tells(run):
            _log.info("step %d: %s", run.step, _seen_sentence(seen))
        # What few images seem to say is checked against the probe's many where both looked.
        with together():
            for sentence in self._watch.look(run.step, seen | record):
                _log.warning("%s", sentence)

    def _has_time(self, run: Run) -> bool:
        """Whether a look of the probe, and the one at the end, leave all looking within `knn.share` of the time."""
        share = self.probe.config.share
        if share >= 1:
            return True
        late = self._looking.with_more(2 * self._probe_seconds) > share
        # The clocks of processes differ: where one has no time, none looks.
        if not largest(int(late))[0]:
            return True
        _log.info(
            "step %d: no look at the teacher, which would be more than knn.share = %g of the time", run.step, share
        )
        return False

    def _tells(self, run: Run) -> bool:
        """Whether a glance gets a line on the terminal: about twenty of a run do."""
        if self._glance is None:
            return False
        part = max(run.total // _LINES, 1)
        return run.step // part != (run.step - self._glance.pace.every) // part


class Share:
    """Time spent on something, as a part of all the time since this was made; use as a context."""

    def __init__(self) -> None:
        self.seconds, self._made, self._entered = 0.0, time.perf_counter(), 0.0

    def __enter__(self) -> "Share":
        self._entered = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._entered

    def with_more(self, seconds: float) -> float:
        """The share that so many seconds more, spent now, make of it."""
        return (self.seconds + seconds) / max(time.perf_counter() - self._made, 1e-9)

    def record(self) -> dict[str, float]:
        """The figures that a run writes down at its end."""
        whole = time.perf_counter() - self._made
        return {"looking_seconds": self.seconds, "looking_share": self.seconds / max(whole, 1e-9)}

    def tell(self, every: int, total: int) -> None:
        """Say it, and what helps where it is much.

        Args:
            every: steps between two looks of the probe.
            total: steps of the run, whose ends are looked at in any case.
        """
        share = self.record()["looking_share"]
        _log.info("looking at the teacher took %.1f s, %.1f %% of the time", self.seconds, 100 * share)
        rarer = math.ceil(every * share / _MUCH)
        if share > _MUCH and every and rarer <= total:
            _log.warning(
                "that is more than %.0f %%; knn.every=%d would have kept it there, or fewer images, knn.max_train",
                *(100 * _MUCH, rarer),
            )


def _sentence(record: Mapping[str, float]) -> str:
    names = [key for key in record if key.startswith(("knn/top1", "linear/top1"))]
    shown = [f"{key.replace('/', ' ').removeprefix('knn ')} {record[key]:.1f} %" for key in names]
    return ", ".join([*shown, f"effective rank {record['health/effective_rank']:.1f}"])


def _seen_sentence(seen: Mapping[str, float]) -> str:
    """What a glance saw, in a line."""
    parts = [
        f"{what} {seen[f'watch/{name}']:{form}}" for name, (what, form) in _SHOWN.items() if f"watch/{name}" in seen
    ]
    return ", ".join(parts)
