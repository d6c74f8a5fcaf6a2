# SPDX-License-Identifier: Apache-2.0
"""What happens between the steps of a run: records, looks at the teacher, checkpoints; called by `loop.py`."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from opendino.checkpoint import store
from opendino.checkpoint.hub import RUN_WEIGHTS
from opendino.checkpoint.store import CheckpointConfig
from opendino.checkpoint.weights import read_config, save_weights
from opendino.config import read_yaml
from opendino.data.loaders import BadImages
from opendino.distributed import is_main, world_size
from opendino.errors import CheckpointError
from opendino.eval.watch import Watch, WatchConfig
from opendino.models.vision_transformer import VisionTransformer
from opendino.train import state
from opendino.train.loop import Run
from opendino.train.metrics import MetricLog
from opendino.train.probe import Probe
from opendino.train.run_folder import versions

_log = logging.getLogger(__name__)


def write_weights(run: Run, folder: Path, images_seen: int, images: str) -> None:
    """Write the teacher's backbone into `weights/` of a run's folder."""
    origin = {"step": run.step, "images_seen": images_seen, "images": images, "decoding": _decoding(folder)}
    save_weights(cast("VisionTransformer", run.method.teacher["backbone"]), folder / RUN_WEIGHTS, origin)


def mend_weights(run: Run, folder: Path, images_seen: int, images: str) -> None:
    """Write `weights/` again if they are not of the run's step: it was killed between a checkpoint and them."""
    try:
        step = read_config(folder / RUN_WEIGHTS)["provenance"]["step"]
    except (CheckpointError, KeyError, TypeError):
        step = None
    if step != run.step:
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
    ) -> None:
        self.folder, self.metrics, self.probe, self.bad = folder, metrics, probe, bad
        self._checkpoints, self._batch_size, self._seconds = checkpoints, batch_size, seconds
        self._watch = Watch(watch or WatchConfig())

    def begin(self, run: Run) -> None:
        """Look at the untrained teacher, which everything later is compared with."""
        if run.step == 0 and self.probe.config.every:
            _log.info("looking at the teacher: %s", self.probe.note)
            self._look(run, run.schedules.teacher_temp(0))

    def after(self, run: Run, record: Mapping[str, float]) -> None:
        """Everything that is due after a step; a checkpoint last, so that it never lacks what belongs to its step."""
        step, last = run.step, run.step == run.total
        if step % self.metrics.config.every == 0 or last or step == 1:
            more = {"images_seen": self.images_seen(run), "skipped": self.bad.failed}
            self.metrics.write(step, {**record, **more})
        every = self.probe.config.every
        if every and (step % every == 0 or last):
            self._look(run, record["teacher_temp"])
        if step % self._checkpoints.every == 0 or last:
            self.save(run)

    def save(self, run: Run) -> None:
        """Write a checkpoint, and the teacher's backbone as weights that can be opened by themselves."""
        if not is_main():
            return
        self.metrics.to_disk()
        meta = {
            "images_seen": self.images_seen(run),
            "images_read": self.bad.read,
            "images_bad": self.bad.failed,
            "seconds": round(self._seconds(), 3),
            "world_size": world_size(),
            "versions": versions(),
        }
        store.save(self.folder, run.step, state.collect(run.method, run.optimizer), meta, self._checkpoints)
        write_weights(run, self.folder, self.images_seen(run), self.bad.name)
        _log.debug("checkpoint of step %d", run.step)

    def images_seen(self, run: Run) -> int:
        """Images that all processes have been trained on so far, counted as often as they came."""
        return run.step * self._batch_size

    def _look(self, run: Run, teacher_temp: float) -> None:
        record = self.probe(run.method.teacher, teacher_temp)
        self.metrics.write(run.step, record)
        shown = [
            f"{key.partition('/')[2]} {value:.1f} %" for key, value in record.items() if key.startswith("knn/top1")
        ]
        rank = f"effective rank {record['health/effective_rank']:.1f}"
        _log.info("step %d: teacher's %s", run.step, ", ".join([*shown, rank]))
        for sentence in self._watch.look(run.step, record):
            _log.warning("%s", sentence)
