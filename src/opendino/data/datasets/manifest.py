# SPDX-License-Identifier: Apache-2.0
"""A table with a column of paths and, optionally, one of labels: CSV, TSV or Parquet."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from opendino.data.datasets._base import DEFAULT, DecodeOptions
from opendino.data.datasets._columns import FAULTS, LABELS, NAMES, PATHS, find, is_text, read_labels
from opendino.data.datasets._paths import PathTable
from opendino.data.datasets.file_list import ListedFiles
from opendino.errors import DataError


class ManifestDataset(ListedFiles):
    """Images named by a table, in its order.

    Args:
        source: `.csv` or `.tsv` with a header line, or `.parquet`.
        options: how images are decoded.
        path_column: column of paths, relative to the table's folder or absolute; found by its name when empty.
        label_column: column of labels; found by its name when empty, "none" for no labels.

    Raises:
        DataError: a column is missing, the table is empty, or none of the files it names first exists.
    """

    def __init__(
        self, source: Path, options: DecodeOptions = DEFAULT, *, path_column: str = "", label_column: str = ""
    ) -> None:
        self.name, self.options, self.classes = str(source), options, []
        self._folder = source.parent
        try:
            table = _read(source, path_column, label_column)
            self._paths = _path_table(table["path"])
            if "label" in table.column_names:
                names = table["names"] if "names" in table.column_names else None
                self.targets, self.classes = read_labels(table["label"], names)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
        except FAULTS as error:
            raise DataError(f"{source}: cannot be read as a table ({error})") from error
        self._require_files()


def _read(source: Path, path_column: str, label_column: str) -> pa.Table:
    """The needed columns, named path, label and names."""
    parquet = source.suffix.lower() in (".parquet", ".pq")
    parse = pa_csv.ParseOptions(delimiter="\t" if source.suffix.lower() == ".tsv" else ",")
    columns = pq.read_schema(source).names if parquet else _header(source, parse)
    path = find(columns, path_column, PATHS)
    if not path:
        raise DataError(f"has no column of paths; name one with path_column, its columns are {', '.join(columns)}")
    wanted = {"path": path}
    if label_column != "none" and (label := find(columns, label_column, LABELS)):
        wanted["label"] = label
        if names := find(columns, "", NAMES):
            wanted["names"] = names
    needed = sorted(set(wanted.values()))
    if parquet:
        table = pq.read_table(source, columns=needed)
    else:
        # Paths are text also where every file is named by a number.
        convert = pa_csv.ConvertOptions(include_columns=needed, column_types={path: pa.string()})
        table = pa_csv.read_csv(source, parse_options=parse, convert_options=convert)
    table.validate(full=True)
    return pa.table({name: table[column] for name, column in wanted.items()})


def _header(source: Path, parse: pa_csv.ParseOptions) -> list[str]:
    with pa_csv.open_csv(source, parse_options=parse) as reader:
        return reader.schema.names


def _path_table(column: pa.ChunkedArray) -> PathTable:
    """The column's own bytes and offsets."""
    if not is_text(column.type):
        raise DataError(f"its column of paths is of type {column.type}; text was wanted")
    if not len(column):
        raise DataError("the table has no rows; give one row for each image")
    array = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in column.chunks])
    _, offsets, text = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    missing = int((np.diff(ends) == 0).sum())
    if missing:
        raise DataError(f"{missing} of {len(column)} paths are missing; fill or drop those rows")
    return PathTable(np.frombuffer(text or b"", dtype=np.uint8), ends)
