# SPDX-License-Identifier: Apache-2.0
"""`search`: the images of an index that are most like some files, or like rows of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from opendino.data.decode import Decoded, decode
from opendino.errors import ConfigError
from opendino.search.index import Hit, Index, open_index


class Query(NamedTuple):
    """What is asked for.

    Attributes:
        name: as it was given.
        picture: as people see it.
        vector: what is compared.
        position: its own in the index, -1 for a new image.
    """

    name: str
    picture: Decoded
    vector: Float[Tensor, " D"]
    position: int


def search(
    index: str | Path | Index, queries: Sequence[str | Path], k: int = 10, *, model: str = "", device: str = "auto"
) -> list[list[Hit]]:
    """The k images that are most like each query.

    Args:
        index: that `build` wrote, or an embedded folder.
        queries: image files, or "row:12" for a row of the data set, which is not told that it is like itself.
        k: images for each query.
        model: where the model is now; empty for where it was.
        device: of the model.

    Raises:
        ConfigError: a query that is neither, k below 1, or another model.
        DataError: there is no index, no such row, or an image cannot be read.
    """
    if k < 1:
        raise ConfigError(f"k = {k}: give 1 or more")
    opened = index if isinstance(index, Index) else open_index(index)
    return answer(opened, [open_query(opened, str(one), model, device) for one in queries], k)


def answer(index: Index, queries: Sequence[Query], k: int) -> list[list[Hit]]:
    """The k images that are most like each query, its own left out."""
    if not queries:
        return []
    vectors = torch.stack([one.vector for one in queries])
    return index.hits(vectors, k, leave_out=[one.position for one in queries])


def open_query(index: Index, name: str, model: str = "", device: str = "auto") -> Query:
    """A query by its name; see `search`.

    Raises:
        ConfigError: it is no image file and no row, or the model is another one.
        DataError: no such row, or the image cannot be read.
    """
    if name.startswith("row:"):
        number = name.removeprefix("row:")
        if not number.isdecimal():
            raise ConfigError(f"{name}: row:N was wanted, such as row:12")
        position = index.position_of(int(number))
        return Query(name, index.dataset.image(int(number)), index.vectors.block(position, position + 1)[0], position)
    path = Path(name)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise ConfigError(f"{name}: {what}; a query is an image file, or row:N for row N of the data set")
    embedder, opened = index.embedder(model, device), index.opened
    channels = embedder.backbone.in_chans
    picture = decode(path, channels, orient=opened["orient"], value_range=opened["value_range"])
    return Query(name, picture, index.vectors_of([index.open_image(path, channels)], embedder)[0], -1)
