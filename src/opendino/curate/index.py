# SPDX-License-Identifier: Apache-2.0
"""Stage 1: which images there are, how large, and which of them cannot or shall not be used.

`list/` names every image by (source, key); `index/` has a row for each with its size, format and hash, and the reason
where it is set aside. Rows are numbered through all parts; every later stage speaks of images by that number.
Read next: `embed.py`.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from opendino.curate._features import Rows
from opendino.curate._sources import Entry, entries_of
from opendino.data.datasets import DecodeOptions
from opendino.data.datasets._paths import shown
from opendino.data.datasets.pointers import PointerDataset
from opendino.data.decode import Decoded, decode
from opendino.errors import ConfigError, DataError
from opendino.stages.engines import Engine, run_stage
from opendino.stages.folder import Stage, digest_of, marker, parts_of, state_of, write_array, write_table

_log = logging.getLogger(__name__)

TABLE = pa.schema(
    [
        ("row", pa.int64()),
        ("set", pa.string()),
        ("source", pa.string()),
        ("key", pa.string()),
        ("label", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("channels", pa.int32()),
        ("bytes", pa.int64()),
        ("format", pa.string()),
        ("sha256", pa.string()),
        ("reason", pa.string()),
    ]
)
"""Columns of an index. `channels` is 1 for a grey picture, 3 for one of colours, however it is stored."""

TABLE_VERSION = 2
"""Another where the columns mean something else, so that old indices are made again."""

_COLOURLESS = 4  # levels of 255 between the channels of a small picture: less is rounding
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_SMALL = (32, 32)


@dataclass(frozen=True)
class IndexConfig:
    """Which images, and what is asked of them.

    Attributes:
        sources: folders, lists, tars, Parquet files, patterns of the last two, folders that `save_to_disk` wrote, or
            `hf:REPOSITORY` in the Hub's cache.
        rows: images in a part.
        min_side: shortest side wanted, pixels; 0 for any.
        max_aspect: longest side over shortest, at most; 0 for any.
        identical: "drop" sets aside all but the first of files with the same bytes.
        verify: "decode" reads every pixel, "header" only what stands before them.
        image_column: column of image bytes in Parquet files; found by its name when empty.
    """

    sources: tuple[str, ...] = ()
    rows: int = 10_000
    min_side: int = 0
    max_aspect: float = 0.0
    identical: Literal["drop", "keep"] = "drop"
    verify: Literal["decode", "header"] = "decode"
    image_column: str = ""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"index.rows = {self.rows}: give 1 or more images")


@dataclass(frozen=True)
class IndexPart:
    """Task: look at the images of one part of the list."""

    folder: Path
    listing: Path
    config: IndexConfig

    def __call__(self, part: int) -> None:
        """Read each image and write the part."""
        table = pq.read_table(marker(self.listing, part))
        images = PointerDataset.of(table, DecodeOptions(), self.config.image_column)
        looks = [_look(images, row, self.config) for row in range(len(table))]
        first = part * self.config.rows
        columns = {"row": pa.array(range(first, first + len(table)), pa.int64())}
        columns |= {name: table[name] for name in ("set", "source", "key", "label")}
        columns |= {name: pa.array([look[name] for look in looks], TABLE.field(name).type) for name in looks[0]}
        write_table(marker(self.folder, part), pa.table(columns).select(TABLE.names).cast(TABLE))


def run(out: Path, name: str, config: IndexConfig, engine: Engine) -> Path:
    """List and look at images.

    Args:
        out: folder of the whole curation.
        name: of this index's folder; its list is beside it.
        config: which images.
        engine: who looks.

    Returns:
        Folder of the index.

    Raises:
        DataError: there is nothing at a source, or no image that can be used.
    """
    if not config.sources:
        raise ConfigError(f"{name}.sources: names nothing; give folders, tars or Parquet files")
    listing, folder = out / f"{name}_list", out / name
    files = {source: state_of(source) for source in config.sources}
    stage = Stage(listing, f"{name}_list", files, {"rows": config.rows, "image_column": config.image_column})
    run_stage(stage, Engine(), 1, _ListAll(listing, config), lambda: {"images": _rows_in(listing)})
    parameters = {key: value for key, value in vars(config).items() if key != "sources"} | {"table": TABLE_VERSION}
    stage = Stage(folder, name, {"list": digest_of(listing)}, parameters)
    run_stage(
        stage, engine, len(parts_of(listing)), IndexPart(folder, listing, config), lambda: _sum_up(folder, config)
    )
    return folder


@dataclass(frozen=True)
class _ListAll:
    """Task with a single part, which writes all parts of the list: walking a folder is one process's work."""

    folder: Path
    config: IndexConfig

    def __call__(self, part: int) -> None:
        del part
        found = (entry for source in self.config.sources for entry in entries_of(source, self.config.image_column))
        entries = _named_in_text(found)
        names = ("set", "source", "key", "label")
        number = 0
        pending: list[tuple[int, list[Entry]]] = []
        while rows := list(islice(entries, self.config.rows)):
            pending.append((number, rows))
            if number:  # part 0 says that all are there, so it is written last
                self._write(*pending.pop(), names)
            number += 1
        if not pending:
            raise DataError(f"{', '.join(self.config.sources)}: holds no images; name another source")
        self._write(*pending.pop(), names)

    def _write(self, number: int, rows: list[Entry], names: tuple[str, ...]) -> None:
        columns = {
            name: pa.array(column, pa.string()) for name, column in zip(names, zip(*rows, strict=True), strict=True)
        }
        write_table(marker(self.folder, number), pa.table(columns))


def _named_in_text(entries: Iterator[Entry]) -> Iterator[Entry]:
    """Those whose names a manifest can hold, which is text; a disk's names may be any bytes."""
    left_out: list[str] = []
    for entry in entries:
        try:
            "".join(entry).encode()
        except UnicodeEncodeError:
            left_out.append(shown(entry[2]))
        else:
            yield entry
    if left_out:
        _log.warning(
            "%d images left out, their names are no UTF-8, such as %s; rename them", len(left_out), left_out[0]
        )


def usable(folder: Path) -> Rows:
    """Numbers of the images of an index that are not set aside."""
    found = [np.zeros(0, dtype=np.int64)]
    for path in parts_of(folder):
        table = pq.read_table(path, columns=["row", "reason"])
        found.append(table["row"].to_numpy()[_empty(table["reason"])])
    rows = np.concatenate(found).astype(np.int64)
    copies = folder / "identical.npy"
    return np.setdiff1d(rows, np.load(copies), assume_unique=True) if copies.exists() else rows


def read_part(folder: Path, part: int) -> pa.Table:
    """Rows of one part that are not set aside."""
    table = pq.read_table(marker(folder, part))
    rows = table["row"].to_numpy()
    keep = _empty(table["reason"])
    copies = folder / "identical.npy"
    if copies.exists():
        keep &= ~np.isin(rows, np.load(copies, mmap_mode="r"))
    return table.filter(pa.array(keep))


def read_index(folder: Path, rows: Rows, columns: list[str]) -> pa.Table:
    """Some columns of some rows, in the order of the rows, which increase."""
    found = []
    for path in parts_of(folder):
        table = pq.read_table(path, columns=["row", *columns])
        here = table["row"].to_numpy()
        low, high = np.searchsorted(rows, [here[0], here[-1] + 1])
        if high > low:
            found.append(table.take(pa.array(rows[low:high] - here[0])))
    return pa.concat_tables(found) if found else TABLE.empty_table().select(["row", *columns])


def _look(images: PointerDataset, row: int, config: IndexConfig) -> dict[str, Any]:
    """What is said of one image."""
    said: dict[str, Any] = {"width": 0, "height": 0, "channels": 0, "bytes": 0, "format": "", "sha256": ""}
    said["reason"] = ""
    try:
        source = images.read(row)
        data = source if isinstance(source, bytes) else source.read_bytes()
        said |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        with Image.open(BytesIO(data)) as image:
            said |= {"width": image.width, "height": image.height, "format": image.format or ""}
            said["channels"] = 1 if image.mode in _GREY_MODES else 3
        if config.verify == "decode":
            picture = decode(data, 3, name="image")
            said["channels"] = 3 if said["channels"] == 3 and _has_colour(picture) else 1
    except OSError as error:
        said["reason"] = f"unreadable: {error.strerror or 'no image format that Pillow can read'}"
        return said
    except (DataError, Image.DecompressionBombError) as error:
        said["reason"] = f"broken: {str(error).removeprefix('image: ')}"
        return said
    short, long = sorted((said["width"], said["height"]))
    if short < config.min_side:
        said["reason"] = f"small: shorter side {short} < {config.min_side}"
    elif config.max_aspect and long > config.max_aspect * short:
        said["reason"] = f"long: aspect {long / short:.2f} > {config.max_aspect:g}"
    return said


def _has_colour(picture: Decoded) -> bool:
    """Whether the channels of a picture differ anywhere by more than rounding; three alike are a grey picture's."""
    if isinstance(picture, Image.Image):
        small = picture.resize(_SMALL, Image.Resampling.BOX, reducing_gap=2.0)
        pixels = np.asarray(small, dtype=np.float32)
    else:
        pixels = picture * 255
    return bool(np.ptp(pixels, axis=2).max() >= _COLOURLESS)


def _sum_up(folder: Path, config: IndexConfig) -> dict[str, Any]:
    """Set identical files aside, and count."""
    reasons: Counter[str] = Counter()
    seen: dict[bytes, int] = {}
    copies, of = [], []
    total = 0
    for path in parts_of(folder):
        table = pq.read_table(path, columns=["row", "sha256", "reason"])
        total += len(table)
        for row, digest, reason in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            if reason:
                reasons[reason.partition(":")[0]] += 1
            elif config.identical == "drop":
                first = seen.setdefault(bytes.fromhex(digest)[:16], row)
                if first != row:
                    copies.append(row)
                    of.append(first)
    if config.identical == "drop":
        write_array(folder / "identical.npy", np.array(copies, dtype=np.int64))
        write_array(folder / "identical_of.npy", np.array(of, dtype=np.int64))
        reasons["identical"] = len(copies)
    left = total - sum(reasons.values())
    if not left:
        raise DataError(f"{folder}: none of {total} images can be used ({dict(reasons)}); name another source")
    return {"images": total, "usable": left, "set_aside": dict(sorted(reasons.items()))}


def _rows_in(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in parts_of(folder))


def _empty(column: pa.ChunkedArray) -> np.ndarray:
    return np.array([not text for text in column.to_pylist()], dtype=bool)
