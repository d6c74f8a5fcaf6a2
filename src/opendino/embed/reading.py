# SPDX-License-Identifier: Apache-2.0
"""A folder that `embed` wrote: its table, its features as arrays, and one feature as a matrix for searching."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from opendino.errors import DataError
from opendino.stages.folder import counts_of, parts_of, plan_of

COLUMNS = ("row", "path", "width", "height", "label")
"""What is known of each image beside its features."""


class Summary(NamedTuple):
    """What a finished folder says of itself.

    Attributes:
        images: that have features.
        skipped: that could not be read.
        model: as it was named.
        shapes: of each feature; 0 for a side that differs between images.
        settings: everything else that the features depend on.
    """

    images: int
    skipped: int
    model: str
    shapes: dict[str, tuple[int, ...]]
    settings: dict[str, Any]


def summary(folder: str | Path) -> Summary:
    """What a folder of features holds.

    Raises:
        DataError: it is none, or is not finished.
    """
    folder = Path(folder)
    if not (folder / "plan.json").is_file():
        raise DataError(f"{folder}: is no folder of features; `opendino embed DATA --out {folder}` makes one")
    if not (folder / "done.json").is_file():
        raise DataError(f"{folder}: is not finished; give the command that began it again")
    plan, counts = plan_of(folder), counts_of(folder)
    if plan["stage"] != "embed" or "shapes" not in plan["parameters"]:
        raise DataError(f"{folder}: was not made by `opendino embed`, but by the stage {plan['stage']} of curation")
    settings = dict(plan["parameters"])
    shapes = {name: tuple(shape) for name, shape in settings.pop("shapes").items()}
    return Summary(counts["images"], counts["skipped"], settings.pop("model_name"), shapes, settings)


def skipped(folder: str | Path) -> list[dict[str, Any]]:
    """Row, path and reason of every image that could not be read."""
    return [
        one
        for path in sorted(Path(folder).glob("part-*.skipped.json"))
        for one in json.loads(path.read_text(encoding="utf-8"))
    ]


def table(folder: str | Path) -> pa.Table:
    """Row, path, width, height and, where there is one, label of every image."""
    shards = []
    for path in parts_of(Path(folder)):
        names = [name for name in COLUMNS if name in pq.read_schema(path).names]
        shards.append(pq.read_table(path, columns=names))
    return pa.concat_tables(shards)


def shards(folder: str | Path, name: str) -> Iterator[np.ndarray]:
    """One feature, shard by shard, [images, ...].

    Raises:
        DataError: there is no such feature, or its shape differs between images.
    """
    folder, found = Path(folder), summary(folder)
    if name not in found.shapes:
        raise DataError(f"{folder}: holds no {name!r}; there are {', '.join(found.shapes)}")
    shape = found.shapes[name]
    if 0 in shape:
        raise DataError(f"{folder}: {name} has another shape for each image; read its columns with pyarrow")
    for path in parts_of(folder):
        array = path.with_name(f"{path.stem}.{name}.npy")
        if array.exists():
            yield np.load(array, mmap_mode="r")
        else:
            column = pq.read_table(path, columns=[name])[name].combine_chunks()
            column = column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)
            yield column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), *shape)


def read(folder: str | Path, *names: str) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """All of a folder in memory: what is known of each image, and its features by name.

    Args:
        folder: that `embed` finished.
        names: of features; none takes all.

    Raises:
        DataError: it is no such folder, or a feature is not there.
    """
    names = names or tuple(summary(folder).shapes)
    return table(folder), {name: np.concatenate(list(shards(folder, name))) for name in names}


def matrix(folder: str | Path, name: str = "") -> Float[np.ndarray, "n D"]:
    """One vector an image, float32.

    Args:
        folder: that `embed` finished.
        name: of a feature that is a vector; the first one when empty.

    Raises:
        DataError: no feature is a vector, or this one is none.
    """
    vectors = [one for one, shape in summary(folder).shapes.items() if len(shape) == 1]
    if not vectors or (name and name not in vectors):
        raise DataError(f"{folder}: {name or 'no feature'} is a vector for each image; there are {', '.join(vectors)}")
    return np.concatenate([part.astype(np.float32) for part in shards(folder, name or vectors[0])])
