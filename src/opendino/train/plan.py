# SPDX-License-Identifier: Apache-2.0
"""From a recipe and words to the settings of a run: defaults, then what fits, then the recipe, then the words.

What fits is chosen once, at the first start (`settings.py`), and remembered in the run's folder: the same command
later, or on another machine, continues with the same settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opendino import config as settings
from opendino.data.datasets import ImageDataset
from opendino.errors import ConfigError
from opendino.files import check_place
from opendino.train import run_folder
from opendino.train.config import PretrainConfig
from opendino.train.facts import DataFacts, look_at_data, look_at_machine
from opendino.train.pretrain import open_images
from opendino.train.settings import Choice, choose


@dataclass(frozen=True)
class Plan:
    """Settings of a run, and where they come from.

    Attributes:
        config: all of them.
        choices: those that were chosen, with the reason of each.
        resumed: whether they were chosen at an earlier start.
        dataset: the images, where they had to be looked at.
    """

    config: PretrainConfig
    choices: dict[str, Choice]
    resumed: bool
    dataset: ImageDataset | None = None


def plan(
    recipe: Path | None,
    words: Sequence[str],
    kind: type[PretrainConfig] = PretrainConfig,
    more: Callable[[PretrainConfig, Mapping[str, Any]], dict[str, Choice]] | None = None,
) -> Plan:
    """Read the settings of a run; looks at the images where something is left open.

    Args:
        recipe: YAML file, or None.
        words: `key=value` of the command line.
        kind: the settings of another kind of training, which are these and more.
        more: what that kind chooses where the run is new, from the settings so far and those that were given.

    Raises:
        ConfigError: a setting is unknown or of the wrong type, or the folder holds something else, such as a run of
            another kind, or cannot be written.
        DataError: the images cannot be opened, or none of those looked at can be read.
    """
    given = given_by(recipe, words)
    complete = recipe is not None and "student.preset" in given_by(recipe, ())
    # Mistakes in the settings show before the images are looked at, which can take a while.
    first = _load(kind, recipe, words, choose(given, DataFacts(), look_at_machine("cpu"), complete))
    if not first.data:
        raise ConfigError("data is missing: give data=FOLDER, a folder of images")
    if not first.output_dir:
        raise ConfigError("output_dir is missing: give output_dir=FOLDER, where the run is written")
    folder = Path(first.output_dir)
    stored = run_folder.read(folder)
    if stored is not None:
        run_folder.check_kind(folder, stored, kind)
        remembered = {key: Choice(value, "chosen at the start of this run") for key, value in stored.chosen.items()}
        choices = {key: choice for key, choice in remembered.items() if key not in given}
        return Plan(_load(kind, recipe, words, choices), choices, resumed=True)
    check_place(folder, f"output_dir = {folder}")
    extra = {key: choice for key, choice in more(first, given).items() if key not in given} if more else {}
    known = given | {key: choice.value for key, choice in extra.items()}
    dataset = open_images(first)
    choices = extra | choose(known, look_at_data(dataset), look_at_machine(first.train.device), complete)
    return Plan(_load(kind, recipe, words, choices), choices, resumed=False, dataset=dataset)


def given_by(recipe: Path | None, words: Sequence[str]) -> dict[str, Any]:
    """Settings as they stand in the recipe and in the words, unchecked; a word that is none is left to the check."""
    given = settings.flatten(settings.read_yaml(recipe)) if recipe is not None else {}
    for word in words:
        if "=" in word:
            key, value = settings.parse_override(word)
            given |= settings.flatten({key: value})
    return given


def _load(
    kind: type[PretrainConfig], recipe: Path | None, words: Sequence[str], choices: dict[str, Choice]
) -> PretrainConfig:
    chosen = {key: choice.value for key, choice in choices.items()}
    return settings.load(kind, recipe, words, chosen)
