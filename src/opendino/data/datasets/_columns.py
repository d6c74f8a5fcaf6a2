# SPDX-License-Identifier: Apache-2.0
"""Finding the columns of a table, and turning a column of labels into numbers and names."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from opendino.errors import DataError

PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "image")
IMAGES = ("image", "img", "bytes", "image_bytes", "jpg", "jpeg", "png")
LABELS = ("label", "labels", "target", "class", "category", "fine_label", "label_name", "class_name")
NAMES = ("label_name", "class_name", "label_names", "category_name")


FAULTS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError)
"""What pyarrow raises of files that are damaged or odd: names that are no UTF-8, columns that come twice ..."""

_MOST_CLASSES = 2**22


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def check_labels(labels: Int64[np.ndarray, " n"]) -> None:
    """Refuse numbers that are no labels: each class up to the last gets a name.

    Raises:
        DataError: one is negative, or larger than any number of classes.
    """
    if len(labels) and labels.min() < 0:
        raise DataError(f"label {labels.min()} is negative; labels count from 0")
    if len(labels) and labels.max() >= _MOST_CLASSES:
        raise DataError(
            f"label {labels.max()} is no number of a class, which count from 0 to at most {_MOST_CLASSES - 1}; name "
            "another column, or label_column=none"
        )


def find(columns: Sequence[str], wanted: str, candidates: Sequence[str]) -> str:
    """The column to use: the wanted one, else the first candidate that is there, else "".

    Raises:
        DataError: the wanted column is missing.
    """
    if wanted:
        if wanted not in columns:
            raise DataError(f"has no column '{wanted}'; its columns are {', '.join(columns)}")
        return wanted
    lower = {column.lower(): column for column in reversed(columns)}
    return next((lower[name] for name in candidates if name in lower), "")


def read_labels(
    column: pa.ChunkedArray, names: pa.ChunkedArray | None = None, known: Sequence[str] = ()
) -> tuple[Int64[np.ndarray, " n"] | None, list[str]]:
    """Labels and class names of a column.

    Whole numbers are kept; their names come from `known`, else from the column `names`, else they are the numbers as
    text. Text is numbered in alphabetical order. A cell without text is a missing label; a column of nothing else
    holds no labels: None.

    Raises:
        DataError: some labels are missing and others not, a label is negative, or the column holds neither whole
            numbers nor text.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if is_text(column.type):
        return _read_text(column)
    if _nothing_there(column.null_count, len(column)):
        return None, []
    if not pa.types.is_integer(column.type):
        raise DataError(f"labels of type {column.type}; whole numbers or text were wanted")
    labels = column.to_numpy().astype(np.int64)
    check_labels(labels)
    if known and len(labels) and labels.max() >= len(known):
        raise DataError(f"label {labels.max()} has no name among the {len(known)} that the file gives its classes")
    return labels, list(known) or _names_of(labels, names)


def _read_text(column: pa.ChunkedArray) -> tuple[Int64[np.ndarray, " n"] | None, list[str]]:
    column = column.fill_null("")
    classes = sorted(column.unique().to_pylist())
    labels = _places(column, classes)
    blank = [place for place, name in enumerate(classes) if not name.strip()]
    if _nothing_there(int(np.isin(labels, blank).sum()), len(labels)):
        return None, []
    return labels, classes


def _nothing_there(missing: int, rows: int) -> bool:
    """Whether all labels are missing.

    Raises:
        DataError: some are missing and others not.
    """
    if 0 < missing < rows:
        raise DataError(f"{missing} of {rows} labels are missing; fill them or name label_column=none")
    return missing == rows > 0


def _places(column: pa.ChunkedArray, classes: list[str]) -> Int64[np.ndarray, " n"]:
    place = {name: number for number, name in enumerate(classes)}
    codes = pa.concat_arrays(column.chunks).dictionary_encode()
    return np.array([place[name] for name in codes.dictionary.to_pylist()], dtype=np.int64)[codes.indices.to_numpy()]


def _names_of(labels: Int64[np.ndarray, " n"], names: pa.ChunkedArray | None) -> list[str]:
    used, first = np.unique(labels, return_index=True)
    classes = [str(label) for label in range(int(used[-1]) + 1)] if len(used) else []
    if names is not None and not names.null_count:
        for label, row in zip(used.tolist(), first.tolist(), strict=True):
            classes[label] = str(names[row].as_py())
    return classes


def huggingface_names(schema: pa.Schema, column: str) -> list[str]:
    """Class names that Hugging Face datasets wrote into a file's metadata, or nothing."""
    text = (schema.metadata or {}).get(b"huggingface")
    if not text:
        return []
    try:
        names = json.loads(text)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names]
