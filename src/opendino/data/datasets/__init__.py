# SPDX-License-Identifier: Apache-2.0
"""What can be opened as a data set of images; `open_dataset` is the one door.

| source                                                             | member                          |
|--------------------------------------------------------------------|---------------------------------|
| a folder of images, nested, class sub-folders optional              | `folder.FolderDataset`          |
| a single image file                                                | `one_image.OneImageDataset`     |
| a `.txt` file, one path a line                                      | `file_list.FileListDataset`     |
| a `.csv`, `.tsv` or `.parquet` file with a column of paths          | `manifest.ManifestDataset`      |
| a `.parquet` file with a column of image bytes, a folder of such,   | `parquet.ParquetDataset`        |
| or a pattern such as `data/train-*.parquet`                         |                                 |
| a `.parquet` file with columns `source` and `key`, of `opendino curate` | `pointers.PointerDataset`   |
| a `.tar`, a folder of such, or a pattern such as `train-{000..127}.tar` | `tars.TarDataset`           |
| a folder that Hugging Face's `save_to_disk` wrote                    | `arrow.ArrowDataset`            |
| a `.yaml` file that names several of all these, with weights        | `mixture.MixtureDataset`        |

A new kind: one file here, a subclass of `ImageDataset`, one line in `_MEMBERS` and one in `_kind`.
"""

from importlib import import_module
from pathlib import Path

from opendino.config import expand_home
from opendino.data.datasets._base import DecodeOptions, ImageDataset
from opendino.errors import DataError, advice

__all__ = ["DecodeOptions", "ImageDataset", "open_dataset"]

_MEMBERS = {
    "folder": ("opendino.data.datasets.folder", "FolderDataset"),
    "image": ("opendino.data.datasets.one_image", "OneImageDataset"),
    "list": ("opendino.data.datasets.file_list", "FileListDataset"),
    "manifest": ("opendino.data.datasets.manifest", "ManifestDataset"),
    "parquet": ("opendino.data.datasets.parquet", "ParquetDataset"),
    "pointers": ("opendino.data.datasets.pointers", "PointerDataset"),
    "tars": ("opendino.data.datasets.tars", "TarDataset"),
    "arrow": ("opendino.data.datasets.arrow", "ArrowDataset"),
    "mixture": ("opendino.data.datasets.mixture", "open_mixture"),
}
_COLUMNS = {
    "manifest": ("path_column", "label_column"),
    "parquet": ("image_column", "label_column"),
    "pointers": ("image_column", "label_column"),
    "tars": ("label_column",),
    "arrow": ("image_column", "label_column"),
    "mixture": ("path_column", "image_column", "label_column"),
}
_PATTERNS = ("parquet", "tars")
_SUFFIXES = {
    ".txt": "list",
    ".csv": "manifest",
    ".tsv": "manifest",
    ".tar": "tars",
    ".yaml": "mixture",
    ".yml": "mixture",
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
        source: folder, list, manifest, tars, Parquet files, mixture and so on, see the table of this module.
        channels: channels of every image; see `data/decode.py`.
        value_range: the two values that become 0 and 1 in images of more than 8 bits.
        orient: whether EXIF orientation is applied.
        path_column: column of paths in a manifest; found by its name when empty.
        image_column: column of image bytes in a Parquet or Arrow file; found by its name when empty.
        label_column: column of labels; found by its name when empty, "none" for no labels.

    Raises:
        DataError: there is nothing at `source`, or nothing in it that can be used.
    """
    if channels < 1:
        raise DataError(f"{source}: {channels} channels were asked for; give 1 or more")
    source = expand_home(str(source))
    options = DecodeOptions(channels, orient, value_range)
    try:
        kind = _kind(source, path_column)
    except OSError as error:
        raise DataError(f"{source[:200]}: cannot be opened ({error.strerror}); {advice(error)}") from None
    module, name = _MEMBERS[kind]
    member = getattr(import_module(module), name)
    given = {"path_column": path_column, "image_column": image_column, "label_column": label_column}
    taken = {column: given[column] for column in _COLUMNS.get(kind, ())}
    dataset = member(source if kind in _PATTERNS else Path(source), options, **taken)
    dataset.columns = given
    return dataset


def _kind(source: str | Path, path_column: str) -> str:
    path = Path(source)
    suffix = path.suffix.lower()
    if not path.exists():
        return _kind_of_pattern(path)
    if path.is_dir():
        return _kind_of_folder(path)
    if suffix in (".parquet", ".pq"):
        return _kind_of_table(path, path_column)
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    from opendino.data.datasets.folder import image_suffixes

    if suffix in image_suffixes():
        return "image"
    raise DataError(
        f"{path}: cannot be opened as a data set; a folder, an image, a list (.txt), a manifest (.csv, .tsv, "
        ".parquet), a Parquet file of images, a tar or a mixture (.yaml) was wanted"
    )


def _kind_of_pattern(path: Path) -> str:
    if path.suffix.lower() == ".tar" and any(sign in str(path) for sign in "*?[{"):
        return "tars"
    if "*" in path.name:
        return "parquet"
    raise DataError(
        f"{path}: there is no such file or folder (working folder {Path.cwd()}); give a folder of images, a list, "
        "a manifest or a Parquet file"
    )


def _kind_of_table(path: Path, path_column: str) -> str:
    from opendino.data.datasets.parquet import has_image_bytes
    from opendino.data.datasets.pointers import is_pointers

    if not path_column and is_pointers(path):
        return "pointers"
    return "manifest" if path_column or not has_image_bytes(path) else "parquet"


def _kind_of_folder(path: Path) -> str:
    """A folder of shards has no picture at its top; one of pictures may hold a Parquet table of metadata."""
    from opendino.data.datasets._ours import refuse_ours
    from opendino.data.datasets.arrow import is_saved
    from opendino.data.datasets.folder import image_suffixes

    refuse_ours(path)
    if is_saved(path):
        return "arrow"
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    found = {entry.suffix.lower() for entry in entries}
    if found & image_suffixes():
        return "folder"
    if ".parquet" in found:
        return "parquet"
    # Beside folders a tar is what they were unpacked from.
    return "tars" if ".tar" in found and not any(entry.is_dir() for entry in entries) else "folder"
