# SPDX-License-Identifier: Apache-2.0
"""Parquet files that hold the encoded images themselves, one row an image.

Columns: the image as binary or as Hugging Face's struct of `bytes` and `path`; optional `id`, `label`, `label_name`.
Files that fit into `IN_MEMORY` are read once, before workers are started, and shared by them; of larger ones each
process keeps the last used row groups.
"""

import logging
import re
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from opendino.data.datasets._base import DEFAULT, DecodeOptions, ImageDataset
from opendino.data.datasets._columns import FAULTS, IMAGES, LABELS, NAMES, find, huggingface_names, read_labels
from opendino.data.datasets.folder import warn_of_parts
from opendino.errors import DataError

IN_MEMORY = 1 << 30
"""Bytes of image columns up to which they are held in memory, shared by all workers."""

CACHE = 256 << 20
"""Bytes of row groups that one process keeps of larger data sets; the last used one stays in any case."""


_LARGE_GROUP = 16 << 20
_PART = re.compile("[^A-Za-z]")  # ends the train of train-00000-of-00002.parquet
_log = logging.getLogger(__name__)


def has_image_bytes(path: Path) -> bool:
    """Whether a Parquet file has a column of encoded images."""
    schema = _schema(path)
    return any(_is_image(field.type) for field in schema)


class ParquetDataset(ImageDataset):
    """Images of one or more Parquet files, in the order of their names and rows.

    Args:
        source: a file, a folder of files, or a pattern of files such as `data/train-*.parquet`.
        options: how images are decoded.
        image_column: column of image bytes; found by its name when empty.
        label_column: column of labels; found by its name when empty, "none" for no labels.

    Raises:
        DataError: no file, a file that is no Parquet, files of different columns, or no column of images.
    """

    def __init__(
        self,
        source: str | Path,
        options: DecodeOptions = DEFAULT,
        *,
        image_column: str = "",
        label_column: str = "",
    ) -> None:
        self.name, self.options, self.classes = str(source), options, []
        self._files = _files(Path(source))
        if Path(source).is_dir():
            warn_of_parts(self.name, {_PART.split(file.name)[0] for file in self._files}, "*.parquet")
        schema = _common_schema(self._files, self.name)
        try:
            self._column = _image_column(schema, image_column)
            label = "" if label_column == "none" else find(schema.names, label_column, LABELS)
            self._groups, bytes_held = _row_groups(self._files, self._column)
            self._starts = np.cumsum([0, *(group.rows for group in self._groups)], dtype=np.int64)
            if not len(self):
                raise DataError("has no rows; give one row for each image")
            if label:
                self._read_labels(schema, label)
            self._ids = self._read_column("id") if "id" in schema.names else None
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error
        except FAULTS as error:
            raise DataError(f"{self.name}: cannot be read as Parquet ({_first_line(error)}); copy it again") from None
        self._cache: OrderedDict[int, _Cells] = OrderedDict()
        self._reading = threading.Lock()
        self._limit = CACHE
        mean_group = bytes_held // len(self._groups)
        if bytes_held > IN_MEMORY and mean_group > _LARGE_GROUP:
            _log.warning(
                "%s: row groups of %d MB, each read whole for one image of a shuffled run; rewrite the files with "
                "smaller ones (row_group_size=100) or as single images",
                self.name,
                mean_group >> 20,
            )
        if bytes_held <= IN_MEMORY:
            self._limit = bytes_held * 2
            for group in range(len(self._groups)):
                self._cells(group)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, object]:
        # Where workers are not forked they read their row groups themselves.
        return {name: value for name, value in vars(self).items() if name != "_reading"} | {"_cache": OrderedDict()}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._reading = threading.Lock()

    def read(self, index: int) -> bytes:
        """Bytes of one image."""
        group, row = self._locate(index)
        with self._reading:  # threads that want one row group wait for it, and none takes it from another
            cells = self._cells(group)
        return cells[row]

    def identify(self, index: int) -> str:
        """File, row and id of one image."""
        group, row = self._locate(index)
        where = self._groups[group]
        name = f"{self._files[where.file]} row {where.first + row}"
        return name if self._ids is None else f"{name} (id {self._ids[index].as_py()})"

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, index - int(self._starts[group])

    def _cells(self, group: int) -> "_Cells":
        """Images of one row group, from the cache or read now."""
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        where = self._groups[group]
        try:
            with pq.ParquetFile(self._files[where.file], memory_map=True) as file:
                table = file.read_row_group(where.number, columns=[self._column], use_threads=False)
            cells = _Cells(table[0])
        except FAULTS as error:
            raise DataError(
                f"{self._files[where.file]}: row group {where.number} cannot be read ({_first_line(error)}); copy the "
                "file again"
            ) from None
        if len(cells) != where.rows:
            raise DataError(
                f"{self._files[where.file]}: row group {where.number} has {len(cells)} rows of {where.rows}"
            )
        self._cache[group] = cells
        while len(self._cache) > 1 and sum(cells.nbytes for cells in self._cache.values()) > self._limit:
            self._cache.popitem(last=False)
        return self._cache[group]

    def _read_column(self, column: str) -> pa.ChunkedArray:
        parts = [pq.read_table(file, columns=[column], use_threads=False)[column] for file in self._files]
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], type=parts[0].type)

    def _read_labels(self, schema: pa.Schema, label: str) -> None:
        names = find(schema.names, "", NAMES)
        self.targets, self.classes = read_labels(
            self._read_column(label),
            self._read_column(names) if names and names != label else None,
            huggingface_names(schema, label),
        )


class _Group(NamedTuple):
    """One row group: its file, its number and first row there, its rows."""

    file: int
    number: int
    first: int
    rows: int


class _Cells:
    """Binary cells of one row group as one buffer and offsets."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        if pa.types.is_struct(column.type):
            column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
        array = pa.concat_arrays([chunk.cast(pa.large_binary()) for chunk in column.chunks])
        _, offsets, data = array.buffers()
        self._offsets: Int64[np.ndarray, " n+1"] = np.frombuffer(offsets, dtype=np.int64)[
            array.offset : array.offset + len(array) + 1
        ]
        self._data = memoryview(data or b"")
        self.nbytes = int(array.nbytes)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> bytes:
        return bytes(self._data[self._offsets[row] : self._offsets[row + 1]])


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except FAULTS as error:
        raise DataError(f"{path}: cannot be read as Parquet ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        found = sorted(source.glob("*.parquet"))
    elif source.exists():
        found = [source]
    else:
        found = sorted(source.parent.glob(source.name))
    if not found:
        raise DataError(f"{source}: no Parquet file fits this pattern in {source.parent.resolve()}; name another")
    return found


def _common_schema(files: list[Path], name: str) -> pa.Schema:
    first = _schema(files[0])
    for file in files[1:]:
        if not _schema(file).equals(first):
            raise DataError(
                f"{name}: {files[0].name} and {file.name} have different columns, so they are no shards of one data "
                "set; name one file, or a pattern such as train-*.parquet"
            )
    return first


def _image_column(schema: pa.Schema, wanted: str) -> str:
    images = [field.name for field in schema if _is_image(field.type)]
    if wanted:
        if find(schema.names, wanted, ()) not in images:
            raise DataError(f"column '{wanted}' is of type {schema.field(wanted).type}; image bytes were wanted")
        return wanted
    if len(images) == 1:
        return images[0]
    column = find(images, "", IMAGES)
    if not column:
        raise DataError(f"columns {', '.join(images) or 'of bytes: none'}; name the images' one with image_column")
    return column


def _row_groups(files: list[Path], column: str) -> tuple[list[_Group], int]:
    """All row groups in order, and the bytes of their images."""
    groups, held = [], 0
    for number, path in enumerate(files):
        metadata = pq.read_metadata(path)
        first = 0
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            groups.append(_Group(number, index, first, group.num_rows))
            first += group.num_rows
            chunks = (group.column(place) for place in range(group.num_columns))
            held += sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)
    return groups, held
