# SPDX-License-Identifier: Apache-2.0
"""What can be opened as a data set of images; `open_dataset` is the one door.

| source                                                             | member                          |
|--------------------------------------------------------------------|---------------------------------|
| a folder of images, nested, class sub-folders optional              | `folder.FolderDataset`          |
| a `.txt` file, one path a line                                      | `file_list.FileListDataset`     |
| a `.csv`, `.tsv` or `.parquet` file with a column of paths          | `manifest.ManifestDataset`      |
| a `.parquet` file with a column of image bytes, a folder of such,   | `parquet.ParquetDataset`        |
| or a pattern such as `data/train-*.parquet`                         |                                 |
| a `.parquet` file with columns `source` and `key`, of `opendino curate` | `pointers.PointerDataset`   |

A new kind: one file here, a subclass of `ImageDataset`, one line in `_MEMBERS` and one in `_kind`.
"""

from importlib import import_module
from pathlib import Path

from opendino.config import expand_home
from opendino.data.datasets._base import DecodeOptions, ImageDataset
from opendino.errors import DataError

__all__ = ["DecodeOptions", "ImageDataset", "open_dataset"]

_MEMBERS = {
    "folder": ("opendino.data.datasets.folder", "FolderDataset"),
    "list": ("opendino.data.datasets.file_list", "FileListDataset"),
    "manifest": ("opendino.data.datasets.manifest", "ManifestDataset"),
    "parquet": ("opendino.data.datasets.parquet", "ParquetDataset"),
    "pointers": ("opendino.data.datasets.pointers", "PointerDataset"),
}


def open_dataset(
    source: str | Path,
    *,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    orient: bool = True,
    path_column: str = "",
    image_column: str = "",
    label_column: str = "",
) -> ImageDataset:
    """Open images from whatever the user has.

    Args:
        source: folder, list, manifest, Parquet file or pattern of Parquet files, see the table of this module.
        channels: channels of every image; see `data/decode.py`.
        value_range: the two values that become 0 and 1 in images of more than 8 bits.
        orient: whether EXIF orientation is applied.
        path_column: column of paths in a manifest; found by its name when empty.
        image_column: column of image bytes in a Parquet file; found by its name when empty.
        label_column: column of labels; found by its name when empty, "none" for no labels.

    Raises:
        DataError: there is nothing at `source`, or nothing in it that can be used.
    """
    if channels < 1:
        raise DataError(f"{source}: {channels} channels were asked for; give 1 or more")
    source = expand_home(str(source))
    options = DecodeOptions(channels, orient, value_range)
    kind = _kind(source, path_column)
    module, name = _MEMBERS[kind]
    member = getattr(import_module(module), name)
    if kind == "manifest":
        dataset = member(Path(source), options, path_column=path_column, label_column=label_column)
    elif kind == "pointers":
        dataset = member(Path(source), options, image_column=image_column, label_column=label_column)
    elif kind == "parquet":
        dataset = member(source, options, image_column=image_column, label_column=label_column)
    else:
        dataset = member(Path(source), options)
    dataset.columns = {"path_column": path_column, "image_column": image_column, "label_column": label_column}
    return dataset


def _kind(source: str | Path, path_column: str) -> str:
    path = Path(source)
    if not path.exists():
        if "*" in path.name:
            return "parquet"
        raise DataError(
            f"{path}: there is no such file or folder (working folder {Path.cwd()}); give a folder of images, a list, "
            "a manifest or a Parquet file"
        )
    if path.is_dir():
        return "parquet" if _is_parquet_folder(path) else "folder"
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return "list"
    if suffix in (".csv", ".tsv"):
        return "manifest"
    if suffix in (".parquet", ".pq"):
        from opendino.data.datasets.parquet import has_image_bytes
        from opendino.data.datasets.pointers import is_pointers

        if not path_column and is_pointers(path):
            return "pointers"
        return "manifest" if path_column or not has_image_bytes(path) else "parquet"
    raise DataError(
        f"{path}: cannot be opened as a data set; a folder, a list (.txt), a manifest (.csv, .tsv, .parquet) or a "
        "Parquet file of images was wanted"
    )


def _is_parquet_folder(path: Path) -> bool:
    """Parquet shards and no picture at its top; a folder of pictures may hold a Parquet table of metadata."""
    from opendino.data.datasets.folder import image_suffixes

    found = {entry.suffix.lower() for entry in path.iterdir()}
    return ".parquet" in found and not found & image_suffixes()
