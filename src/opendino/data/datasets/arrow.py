# SPDX-License-Identifier: Apache-2.0
"""Data sets that Hugging Face's `save_to_disk` wrote: Arrow files in a folder, mapped into memory and never copied.

Read without that library. The image column is its struct of `bytes` and `path`, or plain bytes.
"""

from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from opendino.data.datasets._base import DEFAULT, DecodeOptions, ImageDataset
from opendino.data.datasets._columns import FAULTS, LABELS, find, read_labels
from opendino.data.datasets.parquet import _image_column as image_column_of
from opendino.errors import DataError
from opendino.files import read_json

STATE, INFO, PARTS = "state.json", "dataset_info.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Whether a folder is a data set, or several, that `save_to_disk` wrote."""
    return (folder / PARTS).is_file() or ((folder / STATE).is_file() and (folder / INFO).is_file())


class ArrowDataset(ImageDataset):
    """Images of a saved data set, in its order.

    Args:
        source: the folder.
        options: how images are decoded.
        image_column: column of images; found by its name when empty.
        label_column: column of labels; found by its name when empty, "none" for no labels.

    Raises:
        DataError: the folder holds several parts, a file is missing or is no Arrow file, or there are no images.
    """

    def __init__(
        self, source: Path, options: DecodeOptions = DEFAULT, *, image_column: str = "", label_column: str = ""
    ) -> None:
        self.name, self.options, self.classes = str(source), options, []
        state, self._info = _described(source)
        self._files = [source / entry["filename"] for entry in state["_data_files"]]
        try:
            tables = [_open(file) for file in self._files]
            schema = tables[0].schema
            if any(not table.schema.equals(schema) for table in tables):
                raise DataError("its files have different columns; save the data set again")
            self._column = image_column_of(schema, image_column)
            label = "" if label_column == "none" else find(schema.names, label_column, LABELS)
            table = pa.concat_tables(tables)
            if not len(table):
                raise DataError("has no rows")
            self._map(table)
            if label:
                self.targets, self.classes = read_labels(table[label], None, _names(self._info, label))
        except (DataError, *FAULTS) as error:
            raise DataError(f"{source}: {error}") from error

    def _map(self, table: pa.Table) -> None:
        """Remember the chunks of the image column; their bytes stay in the files."""
        self._chunks: list[pa.Array] = table[self._column].chunks
        for chunk in self._chunks:
            chunk.validate(full=True)  # offsets are believed later, and a damaged file could lead anywhere
        self._starts = np.cumsum([0, *map(len, self._chunks)], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getstate__(self) -> dict[str, object]:
        # A pickled chunk would be a copy of its bytes.
        return {name: value for name, value in vars(self).items() if name != "_chunks"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._map(pa.concat_tables([_open(file) for file in self._files]))

    def read(self, index: int) -> bytes | Path:
        """Bytes of one image, or the path that was saved in their place.

        Raises:
            DataError: there is neither.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        chunk = bisect_right(self._starts, index) - 1
        cell = self._chunks[chunk][index - self._starts[chunk]].as_py()
        if isinstance(cell, dict):
            if cell["bytes"] is None and cell.get("path"):
                return Path(cell["path"])
            cell = cell["bytes"]
        if cell is None:
            raise DataError(f"{self.identify(index)}: the row has no image")
        return cell

    def identify(self, index: int) -> str:
        """Folder and row of one image."""
        return f"{self.name} row {index}"


def _described(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two JSON files say."""
    try:
        if (source / PARTS).is_file():
            parts = read_json(source / PARTS)["splits"]
            raise DataError(
                f"{source}: holds the parts {', '.join(parts)}; name one of them, such as {source / parts[0]}"
            )
        state, info = read_json(source / STATE), read_json(source / INFO)
        files = [entry["filename"] for entry in state["_data_files"]]
        if any(Path(name).name != name for name in files):
            raise ValueError(f"{files} are not files of the folder")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{source}: cannot be read as a saved data set ({type(error).__name__}: {error}); "
            "copy the folder as a whole"
        ) from None
    if not files or state.get("_indices_data_files"):
        raise DataError(f"{source}: has no rows of its own; flatten_indices() it and save it again")
    return state, info


def _open(file: Path) -> pa.Table:
    try:
        return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    except pa.ArrowInvalid as error:
        raise DataError(f"{file.name} cannot be read as Arrow ({error}); copy it again") from None


def _names(info: dict[str, Any], column: str) -> list[str]:
    """Class names of a column, where it is a ClassLabel."""
    try:
        return [str(name) for name in info["features"][column]["names"]]
    except (KeyError, TypeError):
        return []
