# SPDX-License-Identifier: Apache-2.0
"""Looking at features: pictures (`pca.py`) and pages that hold pictures, curves and tables (`report.py`)."""

import difflib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from opendino.errors import ConfigError

PICTURES = MappingProxyType(
    {
        "pca": ("opendino.view.pca", "PcaConfig", "principal components of the patches as colours"),
        "attention": ("opendino.view.attention", "AttentionConfig", "where the class token and the registers look"),
        "match": ("opendino.view.match", "MatchConfig", "the same parts in two images, joined by lines"),
        "similar": ("opendino.view.similar", "SimilarConfig", "everything that is like one spot of an image"),
        "embedding": ("opendino.view.embedding", "EmbeddingConfig", "a map of a data set, thumbnails in the plane"),
    }
)
"""Picture -> (module, config class, what it shows); modules are imported when asked for."""


def view(picture: str, model: str, sources: Sequence[str | Path], /, **settings: Any) -> Path:  # noqa: ANN401  of the picture
    """Make a picture of what a backbone sees, as the command does.

    Args:
        picture: a name of `PICTURES`.
        model: anything that `opendino.load` takes.
        sources: files, folders or other data sets of images.
        settings: of the picture's config, such as `out="pca.png"`.

    Returns:
        The file.

    Raises:
        ConfigError: no such picture, or a setting that does not fit.
        DataError: an image cannot be read.
    """
    module, config = made_by(picture)
    from opendino.checkpoint.hub import load_backbone

    known = config.__dataclass_fields__
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"view {picture}: {name} is no setting; {_hint(close, known)}")
    return module.run(load_backbone(model), [str(source) for source in sources], config(**settings))


def made_by(picture: str) -> tuple[Any, Any]:
    """The module that makes a picture, and its config class.

    Raises:
        ConfigError: there is no such picture.
    """
    if picture not in PICTURES:
        close = difflib.get_close_matches(picture, PICTURES, n=1)
        said = f"view {picture}: no such picture" if picture else "view: name a picture"
        raise ConfigError(f"{said}; {_hint(close, PICTURES, 'the pictures are ')}")
    place, config, _ = PICTURES[picture]
    module = import_module(place)
    return module, getattr(module, config)


def _hint(close: Sequence[str], known: Any, lead: str = "there are ") -> str:  # noqa: ANN401  names
    return f"did you mean {close[0]}?" if close else lead + ", ".join(known)
