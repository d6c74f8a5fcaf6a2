# SPDX-License-Identifier: Apache-2.0
"""Files that are no recipe of a command, told by their keys: recipes of another one, configurations of other code."""

from dataclasses import fields
from importlib import import_module
from pathlib import Path

from opendino.errors import ConfigError

_LIGHTLY_TRAIN = frozenset(
    {"method_args", "transform_args", "loader_args", "trainer_args", "logger_args", "model_args", "optim_args",
     "resume_interrupted", "embed_dim", "out", "method", "epochs"}
)  # fmt: skip
_TRANSFORMERS = frozenset({"model_type", "architectures", "transformers_version", "hidden_size", "num_hidden_layers"})
_ENOUGH = 2  # keys that are theirs and not ours


def commands() -> dict[str, tuple[str, str]]:
    """Command that takes settings -> module and class of these."""
    from opendino.eval import PROTOCOLS

    places = {
        "pretrain": ("opendino.train.config", "PretrainConfig"),
        "adapt": ("opendino.train.adapt_config", "AdaptConfig"),
        "distill": ("opendino.train.distill", "DistillRunConfig"),
        "demo": ("opendino.train.demo", "DemoConfig"),
        "embed": ("opendino.embed", "EmbedConfig"),
        "curate": ("opendino.curate.pipeline", "CurateConfig"),
    }
    return places | {f"eval {name}": (module, config) for name, (module, config, *_) in PROTOCOLS.items()}


def command_of(recipe: Path, first: str = "pretrain") -> str | None:
    """The command that a recipe is for: the first that has all of its groups; None where no command has.

    Args:
        recipe: a file.
        first: the command that is asked before the others.

    Raises:
        ConfigError: the file cannot be read.
    """
    from opendino.config import read_yaml

    groups, places = read_yaml(recipe).keys(), commands()
    for command in (first, *places):
        module, name = places[command]
        if groups <= {field.name for field in fields(getattr(import_module(module), name))}:
            return command
    return None


def refuse_other(recipe: Path, command: str) -> None:
    """Refuse a recipe of another command, of which every setting would be unknown.

    Args:
        recipe: a file.
        command: that it was given to, such as "pretrain" or "eval knn".

    Raises:
        ConfigError: it is one, or cannot be read.
    """
    of = command_of(recipe, first=command)
    if of not in (command, None):
        raise ConfigError(
            f"{recipe}: this is a recipe of `opendino {of}`, and `opendino {command}` has no such settings; give it to "
            f"that command, or choose another recipe (opendino config ls)"
        )


def refuse_foreign(recipe: Path) -> None:
    """Refuse a file that is no recipe but a configuration of the official code, of transformers or of lightly-train.

    Args:
        recipe: a file.

    Raises:
        ConfigError: it is one of these, or cannot be read.
    """
    from opendino.config import read_yaml
    from opendino.train.official_config import is_official

    keys = read_yaml(recipe).keys()
    if is_official(recipe):
        raise ConfigError(
            f"{recipe}: a training configuration of the official DINOv2 code, not a recipe; make one of it by opendino "
            f"config import {recipe} gpus=N out=RECIPE.yaml, with the N GPUs that it was meant for"
        )
    if len(keys & _TRANSFORMERS) >= _ENOUGH:
        raise ConfigError(
            f"{recipe}: describes a model of transformers, not a training; go on training that model by opendino adapt "
            f"{recipe.parent} data=DIR output_dir=RUN, or name an architecture by student.preset=vits14"
        )
    if len(keys & _LIGHTLY_TRAIN) >= _ENOUGH:
        raise ConfigError(
            f"{recipe}: a configuration of lightly-train, not a recipe; write its data, out, model, batch_size and "
            "seed as data=, output_dir=, student.preset=, train.batch_size= and seed=, and leave the rest to be chosen"
        )
