# SPDX-License-Identifier: Apache-2.0
"""What can be known to fail, as early as it can be known: before any work, or as soon as the images are counted.

Read next: `pipeline.py`, which asks.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from opendino import distributed
from opendino.curate import balance, cluster
from opendino.curate._embedders import NO_MODEL, EmbedConfig, open_embedder, stack
from opendino.errors import ConfigError, DataError, OpendinoError
from opendino.neighbours.approximate import library
from opendino.stages.engines import check_engine
from opendino.stages.folder import plan_of, state_of

if TYPE_CHECKING:
    from opendino.curate.pipeline import CurateConfig

_PICTURE = Image.linear_gradient("L").convert("RGB")
_NEEDS = {"retrieve": ("queries", "queries=[...]"), "decontaminate": ("references", "references=[...]")}


def check(config: "CurateConfig", embeds: bool, copies: bool) -> None:
    """Before any work: sources and models are there and open, packages can be imported, selections will be made.

    Args:
        config: everything.
        embeds: whether the features of `embed` will be needed.
        copies: whether the copy detector's will.

    Raises:
        ConfigError: a setting cannot be met.
        DataError: a source is not there.
        ModelError: a model gives no features.
        CheckpointError: a model cannot be opened.
    """
    if not config.index.sources:
        raise ConfigError("index.sources: names nothing; give folders, tars or Parquet files")
    for source in (*config.index.sources, *config.references, *config.queries):
        if not _is_there(source):
            state_of(source)
    _check_parts(config)
    if config.search.engine != "exact" and copies:
        library()
    check_engine(config.engine)
    for group, model, needed in (("copy", config.copy, copies), ("embed", config.embed, embeds)):
        if needed and not model.model:
            raise ConfigError(NO_MODEL.replace("embed", group, 1))
        if needed and not _was_opened(config.out / ("copy_embed" if group == "copy" else "embed"), model):
            _open(group, model, config)


def check_sizes(config: "CurateConfig", images: int) -> None:
    """As soon as the images left are counted: there are as many as the sample and the clusters want.

    Raises:
        ConfigError: there are fewer.
    """
    balance.check_size(images, config.balance)
    if images and config.cluster.levels:
        cluster.resolved(config.cluster, images)


def _is_there(source: str) -> bool:
    return source.startswith("hf:") or Path(source).expanduser().exists()


def _check_parts(config: "CurateConfig") -> None:
    """That every part of the mixture is a selection which this run makes."""
    for part in config.mix.parts:
        if part in _NEEDS and not getattr(config, _NEEDS[part][0]):
            raise ConfigError(f"mix.parts: {part} selects nothing without {_NEEDS[part][1]}; give it, or leave it out")
        if part == "prune" and not config.prune.eps:
            raise ConfigError("mix.parts: prune selects nothing while prune.eps = 0; give it, or leave prune out")
        wanted = part.removeprefix("set:")
        if wanted != part and wanted not in config.index.sources:
            there = ", ".join(config.index.sources)
            raise ConfigError(f"mix.parts: {part} is no source of this index; there are {there}")


def _was_opened(folder: Path, model: EmbedConfig) -> bool:
    """Whether a stage was finished with the model, so that opening it is likely to be for nothing."""
    try:
        said = plan_of(folder)["parameters"]
    except DataError:
        return False
    return isinstance(said, dict) and said.get("model") == model.model


def _open(group: str, model: EmbedConfig, config: "CurateConfig") -> None:
    """Open a model and give it a picture; where others will do the work, without keeping it or taking a GPU."""
    elsewhere = config.engine.name == "ray" or config.engine.workers > 1
    with distributed.together():
        if distributed.is_main():
            try:
                stack(open_embedder(replace(model, device="cpu") if elsewhere else model), [_PICTURE])
            except OpendinoError as error:
                raise type(error)(f"{group}.model = {model.model}: {error}") from None
            finally:
                if elsewhere:
                    open_embedder.cache_clear()
