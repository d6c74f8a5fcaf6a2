# SPDX-License-Identifier: Apache-2.0
"""Images by (source, key): what `opendino curate` writes in place of copies of images.

| source                | key                                                         |
|-----------------------|-------------------------------------------------------------|
| a folder              | path of the file below it                                   |
| a `save_to_disk` folder | number of the row, from 0                                 |
| a `.parquet` file     | number of the row, from 0                                   |
| a `.tar` file         | `offset+length`, bytes of the member, and its name behind   |

A manifest is a Parquet file with the text columns `source` and `key`, and optionally whole-number `weight` (times
that an image counts in one epoch) and `label` (text). Sources are absolute, or relative to the manifest's folder.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from opendino.data.datasets._base import DEFAULT, DecodeOptions, ImageDataset
from opendino.data.datasets._columns import FAULTS, is_text, read_labels
from opendino.data.datasets._handles import Handles
from opendino.data.datasets._paths import PathTable, shown
from opendino.data.datasets.arrow import ArrowDataset, is_saved
from opendino.data.datasets.parquet import ParquetDataset
from opendino.errors import DataError

COLUMNS = frozenset({"source", "key"})
_IMAGE_COLUMN = b"opendino.image_column"
_MOST = 2**32
"""Images of an epoch, of which each takes a number in memory."""


def is_pointers(path: Path) -> bool:
    """Whether a Parquet file is a manifest of this kind."""
    try:
        return set(pq.read_schema(path).names) >= COLUMNS
    except FAULTS:
        return False


class PointerDataset(ImageDataset):
    """Images that a manifest points at, in its order, each as often as its weight says.

    Args:
        source: the manifest.
        options: how images are decoded.
        image_column: column of image bytes in the Parquet files pointed at; what the manifest says when empty.
        label_column: "none" for no labels.

    Raises:
        DataError: it cannot be read, names nothing, or has a weight below 0.
    """

    def __init__(
        self, source: Path, options: DecodeOptions = DEFAULT, *, image_column: str = "", label_column: str = ""
    ) -> None:
        self.name, self.options, self.classes = str(source), options, []
        try:
            schema = pq.read_schema(source)
            wanted = [name for name in ("source", "key", "weight", "label") if name in schema.names]
            table = pq.read_table(source, columns=wanted)
            table.validate(full=True)
            self._fill(table, source.parent, image_column or _image_column(schema))
            if "label" in wanted and label_column != "none" and not table["label"].null_count:
                labels, self.classes = read_labels(table["label"])
                self.targets = labels if labels is None or self._rows is None else labels[self._rows]
        except DataError as error:
            raise DataError(f"{source}: {error}") from None
        except FAULTS as error:
            raise DataError(f"{source}: cannot be read as a manifest ({error})") from error

    @classmethod
    def of(cls, table: pa.Table, options: DecodeOptions = DEFAULT, image_column: str = "") -> "PointerDataset":
        """From columns in memory, sources absolute; weights and labels do not count."""
        made = cls.__new__(cls)
        made.name, made.options, made.classes = "pointers", options, []
        made._fill(table.select(["source", "key"]), Path(), image_column)
        return made

    def _fill(self, table: pa.Table, folder: Path, image_column: str) -> None:
        if not len(table):
            raise DataError("the manifest has no rows; give one row for each image")
        odd = [name for name in COLUMNS if table[name].null_count or not is_text(table[name].type)]
        if odd:
            raise DataError(f"{' and '.join(odd)}: text was wanted in every row")
        names = pa.concat_arrays([chunk.cast(pa.string()) for chunk in table["source"].chunks]).dictionary_encode()
        self._sources = [folder / name for name in names.dictionary.to_pylist()]
        self._source_of = names.indices.to_numpy().astype(np.int32)
        self._keys = PathTable.collect(os.fsencode(key) for key in table["key"].to_pylist())
        self._rows: Int64[np.ndarray, " n"] | None = None
        if "weight" in table.column_names:
            whole = pa.types.is_integer(table["weight"].type) and not table["weight"].null_count
            weights = table["weight"].to_numpy().astype(np.int64) if whole else np.array([-1])
            if weights.min() < 0 or not weights.any():
                raise DataError("weights are whole numbers of 0 or more, not all 0")
            if weights.max() > _MOST or weights.sum() > _MOST:
                raise DataError(f"weights make an epoch of more than {_MOST} images; give smaller ones")
            if (weights != 1).any():
                self._rows = np.repeat(np.arange(len(weights)), weights)
        self._image_column = image_column
        self._handles = Handles()
        self._opened: dict[int, ParquetDataset | ArrowDataset] = {}
        self._saved: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self._keys) if self._rows is None else len(self._rows)

    def __getstate__(self) -> dict[str, object]:
        # Open files do not travel to another process.
        return vars(self) | {"_opened": {}}

    def _locate(self, index: int) -> tuple[int, str]:
        row = index if self._rows is None else int(self._rows[index])
        return int(self._source_of[row]), self._keys[row]

    def read(self, index: int) -> bytes | Path:
        """Bytes of one image, or its path.

        Raises:
            DataError: its file is gone or is no longer what the manifest was made from.
        """
        number, key = self._locate(index)
        source = self._sources[number]
        suffix = source.suffix.lower()
        if suffix not in (".tar", ".parquet", ".pq") and not self._is_saved(number):
            return source / key
        try:
            return self._from_tar(number, key) if suffix == ".tar" else self._from_rows(number, key)
        except (OSError, IndexError, ValueError, OverflowError) as error:
            raise DataError(f"{source}: {key} cannot be read ({error}); was the file moved or changed?") from error

    def _from_tar(self, number: int, key: str) -> bytes:
        place, _, _ = key.partition(" ")
        offset, length = (int(part) for part in place.split("+"))
        return self._handles.read(self._sources[number], offset, length)

    def _is_saved(self, number: int) -> bool:
        if number not in self._saved:
            self._saved[number] = is_saved(self._sources[number])
        return self._saved[number]

    def _from_rows(self, number: int, key: str) -> bytes | Path:
        opened = self._opened.get(number)
        if opened is None:
            kind = ArrowDataset if self._saved.get(number) else ParquetDataset
            opened = kind(self._sources[number], self.options, image_column=self._image_column, label_column="none")
            self._opened[number] = opened
        return opened.read(int(key))

    def identify(self, index: int) -> str:
        """Source and key of one image."""
        number, key = self._locate(index)
        return shown(f"{self._sources[number]}/{key}")


def with_image_column(schema: pa.Schema, column: str) -> pa.Schema:
    """A manifest's schema that says in which column of its Parquet sources the images are."""
    return schema.with_metadata({_IMAGE_COLUMN: column.encode()}) if column else schema


def _image_column(schema: pa.Schema) -> str:
    return (schema.metadata or {}).get(_IMAGE_COLUMN, b"").decode()
