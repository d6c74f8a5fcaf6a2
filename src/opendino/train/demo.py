# SPDX-License-Identifier: Apache-2.0
"""The demonstration: pretrain on the shipped garments without labels, then measure what was learned.

Three rows by one protocol, on images that were not trained on: raw pixels, the untrained backbone (the very weights
that training began with), the trained teacher. Read next: `demo_report.py`, the page that is written of it.
"""

import copy
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from opendino import __version__
from opendino.checkpoint import store
from opendino.config import expand_home, load
from opendino.data import garments
from opendino.data.datasets import ImageDataset
from opendino.errors import ConfigError, TrainingError
from opendino.eval import health, knn, logreg
from opendino.eval._data import LabelledConfig, LabelledPair, open_pair
from opendino.eval._features import FeatureConfig, Features, extract
from opendino.files import check_place, is_leftover, write_whole
from opendino.models.vision_transformer import VisionTransformer
from opendino.neighbours.exact import nearest
from opendino.neighbours.matrix import InMemory
from opendino.train import state
from opendino.train.config import PretrainConfig, check_settings, fill_in
from opendino.train.loop import Run
from opendino.train.plan import Plan, plan
from opendino.train.pretrain import Outcome, build_run, pretrain

_log = logging.getLogger(__name__)

RESULT, REPORT, MARK = "result.json", "report.html", "demo.json"
NEIGHBOURS = 20
ROWS = ("pixels", "random", "trained")

# Standardised features need few strengths; the published 45 are for features of any scale.
_REGRESSION = logreg.RegressionConfig(
    feature="both", standardize=True, values=8, exponents=(-4.0, 3.0), tolerance=1e-3, max_iterations=500
)
_FEATURES = FeatureConfig(batch_size=256, workers=0)
_VOTES = knn.VoteConfig(k=(NEIGHBOURS,), feature="both")


@dataclass(frozen=True)
class DemoConfig:
    """What the demonstration itself takes; every other word is a setting of the recipe.

    Attributes:
        seed: of the run.
        output_dir: gets `demo.json` (its mark), `data/`, the run `seed_N/`, `result.json` and `report.html`.
        images: most images of each part, for a quick look; 0 takes all.
    """

    seed: int = 0
    output_dir: str = "runs/demo"
    images: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_dir", expand_home(self.output_dir))
        if self.images < 0:
            raise ConfigError(f"images = {self.images}: give 0 for all images, or how many of each part")


class Margin(NamedTuple):
    """A comparison that the demonstration promises.

    Attributes:
        what: in words.
        found: a difference in points, or a figure as it is.
        wanted: the least that will do.
        strict: whether more than that is wanted.
        unit: "points" of a difference, "" of a figure.
    """

    what: str
    found: float
    wanted: float
    strict: bool = False
    unit: Literal["points", ""] = "points"

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.found > self.wanted if self.strict else self.found >= self.wanted

    def shown(self) -> str:
        """What was found, to read."""
        return f"{self.found:+.1f}" if self.unit else f"{self.found:.3f}"

    def wish(self) -> str:
        """What was wanted, to read."""
        sign = "+" if self.unit and self.wanted else ""
        return f"{'more than' if self.strict else 'at least'} {sign}{self.wanted:g}"


class Note(NamedTuple):
    """What a reader of a figure should know.

    Attributes:
        row: of the table, one of `ROWS`.
        protocol: "knn" or "logreg".
        text: a sentence.
    """

    row: str
    protocol: str
    text: str


@dataclass(frozen=True)
class Measured:
    """What the three rows came to, all on test images.

    Attributes:
        knn: top-1 of k-NN in percent, for each of `ROWS`.
        logreg: top-1 of logistic regression in percent, for each of `ROWS`.
        health: figures of the teacher, by the names of `eval/health.py`.
        health_random: the same of the untrained teacher.
        nearest: for each space of `ROWS`, rows of the nearest training images of each test image.
        pair: the images and labels.
        backbones: "random" and "trained".
        notes: on single figures, such as a fit that did not converge.
    """

    knn: dict[str, float]
    logreg: dict[str, float]
    health: dict[str, float]
    health_random: dict[str, float]
    nearest: dict[str, Tensor]
    pair: LabelledPair
    backbones: dict[str, VisionTransformer]
    notes: tuple[Note, ...] = ()

    def margins(self) -> list[Margin]:
        """What the demonstration promises, and whether it was kept."""
        return [
            Margin("k-NN, trained over untrained", self.knn["trained"] - self.knn["random"], 12),
            Margin("logistic regression, trained over untrained", self.logreg["trained"] - self.logreg["random"], 9),
            Margin("logistic regression, trained over pixels", self.logreg["trained"] - self.logreg["pixels"], 10),
            Margin("k-NN, trained over pixels", self.knn["trained"] - self.knn["pixels"], 0, strict=True),
            Margin("entropy of the mean prediction / ln K", self.health["entropy_of_mean"], 0.9, strict=True, unit=""),
        ]


@dataclass(frozen=True)
class Demonstration:
    """A finished demonstration.

    Attributes:
        config: of the pretraining.
        outcome: of the pretraining.
        measured: the figures.
        seconds: of everything; after an interruption also those of the earlier processes, see `Outcome`.
        whole: whether all images and steps of the recipe were used, without which nothing was promised.
    """

    config: PretrainConfig
    outcome: Outcome
    measured: Measured
    seconds: float
    whole: bool = True

    def result(self) -> dict[str, object]:
        """What `result.json` holds; figures in percent unless their name says otherwise."""
        measured = self.measured
        figures = {f"knn_{row}": measured.knn[row] for row in ROWS}
        figures |= {f"logreg_{row}": measured.logreg[row] for row in ROWS}
        return {
            **{name: round(value, 3) for name, value in figures.items()},
            "seconds": round(self.seconds, 1),
            "images_seen": self.outcome.images_seen,
            "seed": self.config.seed,
            "iterations": self.outcome.steps,
            "seconds_pretraining": round(self.outcome.seconds_before + self.outcome.seconds, 1),
            "precision": self.config.train.precision,
            "health": {name: round(value, 5) for name, value in measured.health.items()},
            "health_random": {name: round(value, 5) for name, value in measured.health_random.items()},
            "margins": [
                {"what": one.what, "found": round(one.found, 3), "wanted": one.wanted, "met": one.met}
                for one in measured.margins()
            ],
            "whole": self.whole,
            "margins_met": all(one.met for one in measured.margins()) if self.whole else None,
            "notes": [one._asdict() for one in measured.notes],
        }


def demo(recipe: Path, config: DemoConfig, words: Sequence[str] = ()) -> Demonstration:
    """Pretrain, measure, write `result.json` and `report.html`.

    Args:
        recipe: YAML file of the pretraining.
        config: of the demonstration.
        words: `key=value` for the pretraining, over the recipe.

    Raises:
        ConfigError: a setting is unknown or wrong, or the folder holds something else.
        Stopped: the process was asked to stop; the same call continues.
    """
    from opendino.train.demo_report import write_report

    begun = time.perf_counter()
    home = Path(config.output_dir)
    planned = prepare(recipe, config, words)
    outcome = pretrain(planned.config, {key: choice.value for key, choice in planned.choices.items()})
    # With the threads that training found fastest: more of them wait for each other where other work runs beside.
    measured = measure(planned.config)
    promised = load(PretrainConfig, recipe, ())
    whole = not config.images and outcome.images_seen >= promised.train.iterations * promised.train.batch_size
    seconds = outcome.seconds_before + time.perf_counter() - begun
    found = Demonstration(planned.config, outcome, measured, seconds, whole)
    write_report(home / REPORT, found)
    found = replace(found, seconds=outcome.seconds_before + time.perf_counter() - begun)
    text = json.dumps(found.result(), indent=1) + "\n"
    write_whole(home / RESULT, text)
    write_whole(outcome.output_dir / RESULT, text)  # marks the run as finished and measured
    return found


def prepare(recipe: Path, config: DemoConfig, words: Sequence[str] = ()) -> Plan:
    """Place the garments and plan the run, which continues an interrupted one and replaces a finished one.

    Raises:
        ConfigError: a setting is unknown or wrong, or the folder holds something else.
    """
    home, run = Path(config.output_dir), Path(config.output_dir) / f"seed_{config.seed}"
    files = {part: home / "data" / f"{part}.parquet" for part in garments.PARTS}
    images = [f"data={files['train']}", f"knn.train={files['train']}", f"knn.val={files['test']}"]
    given = [*images, f"output_dir={run}", f"seed={config.seed}", *words]
    check_settings(load(PretrainConfig, recipe, given))  # a mistake shows before anything is touched
    _claim(home)
    if (run / RESULT).exists():
        _log.info("the demonstration in %s was finished; starting anew", run)
        shutil.rmtree(run)
    for name in (RESULT, REPORT):  # what lies there shall never be of another run than the newest
        (home / name).unlink(missing_ok=True)
    garments.write(home / "data", limit=config.images or None)
    return plan(recipe, given)


def _claim(home: Path) -> None:
    """Mark a new or empty folder as a demonstration's; what is in a marked one may be replaced.

    Raises:
        ConfigError: the folder holds something else.
    """
    if home.exists() and not home.is_dir():
        raise ConfigError(f"output_dir = {home} is a file; name a folder for the demonstration")
    if (home / MARK).is_file():
        return
    names = sorted(path.name for path in home.iterdir()) if home.exists() else []
    strangers = [name for name in names if not is_leftover(name, MARK)]
    if strangers:
        raise ConfigError(
            f"output_dir = {home} holds files that are not of a demonstration, such as {strangers[0]}; "
            "name another folder for it"
        )
    check_place(home, f"output_dir = {home}")
    home.mkdir(parents=True, exist_ok=True)
    write_whole(home / MARK, json.dumps({"opendino": __version__}) + "\n")


def measure(config: PretrainConfig) -> Measured:
    """The three rows of a finished run, and the health of its teacher before and after.

    Raises:
        TrainingError: the run is not finished.
    """
    pair = open_pair(LabelledConfig(train=config.knn.train, val=config.knn.val), channels=1)
    run, spaces, checks, backbones = build_run(fill_in(config, len(pair.train))), {"pixels": _pixels(pair)}, {}, {}
    for row in ("random", "trained"):
        if row == "trained":
            _restore(run, Path(config.output_dir))
        # A copy, for the run's own teacher goes on to the next row.
        backbones[row] = copy.deepcopy(cast("VisionTransformer", run.method.teacher["backbone"]))
        train, test = (extract(backbones[row], part, _FEATURES, what=row) for part in (pair.train, pair.val))
        spaces[row] = _space(train, test)
        checks[row] = health.summary(test.cls, _prototypes(run, test.cls))
    votes = {row: _knn(space, pair) for row, space in spaces.items()}
    fits = {row: _logreg(space, pair) for row, space in spaces.items()}
    protocols = {"knn": votes, "logreg": fits}
    return Measured(
        knn={row: accuracy for row, (accuracy, _) in votes.items()},
        logreg={row: accuracy for row, (accuracy, _) in fits.items()},
        health=checks["trained"],
        health_random=checks["random"],
        nearest={
            row: nearest(space.test_unit, InMemory(space.train_unit), NEIGHBOURS, knn.exactly("cpu"))[1]
            for row, space in spaces.items()
        },
        pair=pair,
        backbones=backbones,
        notes=tuple(
            Note(row, protocol, text)
            for protocol, found in protocols.items()
            for row, (_, texts) in found.items()
            for text in texts
        ),
    )


class _Space(NamedTuple):
    """Both parts in one row of the table: as they are, and L2-normalised for cosines."""

    train: Float[Tensor, "n F"]
    test: Float[Tensor, "m F"]
    train_unit: Float[Tensor, "n F"]
    test_unit: Float[Tensor, "m F"]


def _space(train: Features, test: Features) -> _Space:
    parts = [part.select("both", normalize=unit) for unit in (False, True) for part in (train, test)]
    return _Space(*parts)


def _pixels(pair: LabelledPair) -> _Space:
    train, test = _grey(pair.train), _grey(pair.val)
    return _Space(train, test, F.normalize(train, dim=-1), F.normalize(test, dim=-1))


def _grey(dataset: ImageDataset) -> Float[Tensor, "n P"]:
    rows = np.stack([np.asarray(dataset.image(row), dtype=np.uint8).ravel() for row in range(len(dataset))])
    return torch.from_numpy(rows).float() / 255


def _knn(space: _Space, pair: LabelledPair) -> tuple[float, list[str]]:
    votes = replace(_VOTES, k=(min(NEIGHBOURS, len(pair.train)),))
    figures, notes = knn.evaluate(space.train_unit, pair.train_labels, space.test_unit, pair.val_labels, votes)
    return figures[f"top1_k{votes.k[0]}"], notes


def _logreg(space: _Space, pair: LabelledPair) -> tuple[float, list[str]]:
    figures, notes = logreg.evaluate(space.train, pair.train_labels, space.test, pair.val_labels, _REGRESSION)
    return figures["top1"], notes


def _restore(run: Run, folder: Path) -> None:
    newest = store.latest(folder)
    checkpoint = None if newest is None else store.opened(newest)
    if checkpoint is None or checkpoint.step != run.total:
        raise TrainingError(f"{folder}: the run is not finished; run the demonstration again, it continues")
    state.restore(run.method, run.optimizer, checkpoint)


@torch.no_grad()
def _prototypes(run: Run, cls: Float[Tensor, "n D"]) -> Float[Tensor, "n K"]:
    """The teacher's probabilities over the prototypes, at the temperature of the run's end."""
    temp = run.schedules.teacher_temp(run.total)
    return (run.method.teacher["dino_head"](cls.to(run.device)).float() / temp).softmax(dim=-1).cpu()
