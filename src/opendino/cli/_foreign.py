# SPDX-License-Identifier: Apache-2.0
"""Configurations of other code where a recipe was wanted: told by their own keys, with what to do instead."""

from pathlib import Path

from opendino.errors import ConfigError

_LIGHTLY_TRAIN = frozenset(
    {"method_args", "transform_args", "loader_args", "trainer_args", "logger_args", "model_args", "optim_args",
     "resume_interrupted", "embed_dim", "out", "method", "epochs"}
)  # fmt: skip
_TRANSFORMERS = frozenset({"model_type", "architectures", "transformers_version", "hidden_size", "num_hidden_layers"})
_ENOUGH = 2  # keys that are theirs and not ours


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
