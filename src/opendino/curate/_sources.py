# SPDX-License-Identifier: Apache-2.0
"""Where images lie: folders, lists, tars, Parquet files and data sets of the Hub as a stream of (source, key).

Read next: `index.py`, and `data/datasets/pointers.py`, which opens what is named here.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from opendino.data.datasets import ImageDataset, open_dataset
from opendino.data.datasets._paths import shown
from opendino.data.datasets._tar_index import NO_LABEL, walk
from opendino.data.datasets.arrow import is_saved
from opendino.data.datasets.folder import image_suffixes
from opendino.errors import DataError

Entry = tuple[str, str, str, str]
"""Source as the user named it, file or folder, key there, label or nothing."""


def entries_of(source: str, image_column: str = "") -> Iterator[Entry]:
    """Every image of a source, in a fixed order.

    Raises:
        DataError: there is nothing that can be used.
    """
    hub = source.startswith("hf:")
    path = _from_hub(source.removeprefix("hf:")) if hub else Path(source).expanduser().absolute()
    tars = _matching(path, ".tar")
    if tars:
        for tar in tars:
            yield from _in_tar(source, tar)
        return
    if is_saved(path):
        dataset = open_dataset(path, image_column=image_column)
        for row in range(len(dataset)):
            yield source, str(path), str(row), _label(dataset, row)
        return
    tables = [file for suffix in (".parquet", ".pq") for file in _matching(path, suffix)]
    if tables and (path.is_dir() or "*" in path.name or _has_images(path)):
        for table in tables:
            dataset = open_dataset(table, image_column=image_column)
            for row in range(len(dataset)):
                yield source, str(table), str(row), _label(dataset, row)
        return
    dataset = open_dataset(path, image_column=image_column)
    root = path if path.is_dir() else path.parent
    for row in range(len(dataset)):
        place = dataset.read(row)
        if isinstance(place, bytes):
            raise DataError(f"{source}: a manifest of pointers is a result of curation; give its sources")
        relative = place.is_relative_to(root)
        yield (
            source,
            str(root if relative else place.parent),
            str(place.relative_to(root)) if relative else place.name,
            _label(dataset, row),
        )


def _matching(path: Path, suffix: str) -> list[Path]:
    if path.is_dir():
        found = sorted(path.glob(f"*{suffix}"))
        pictures = any(file.suffix.lower() in image_suffixes() for file in islice(path.iterdir(), 1000))
        return [] if pictures else found
    if "*" in path.name:
        return sorted(file for file in path.parent.glob(path.name) if file.suffix.lower() == suffix)
    return [path] if path.suffix.lower() == suffix and path.exists() else []


def _has_images(path: Path) -> bool:
    from opendino.data.datasets.parquet import has_image_bytes

    return has_image_bytes(path)


def _in_tar(source: str, path: Path) -> Iterator[Entry]:
    found = walk(path)  # not the index that training keeps beside a tar: that would change the folder that is listed
    for row, (offset, length, label) in enumerate(zip(found.offsets, found.lengths, found.labels, strict=True)):
        key = f"{offset}+{length} {shown(found.names[row])}"
        yield source, str(path), key, "" if label == NO_LABEL else str(label)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        home = Path(snapshot_download(name, repo_type="dataset", allow_patterns=["*.parquet"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise DataError(
            f"hf:{name}: cannot be fetched ({type(error).__name__}); check the name and the network"
        ) from None
    folders = sorted({file.parent for file in home.rglob("*.parquet")})
    if len(folders) != 1:
        raise DataError(f"hf:{name}: Parquet files in {len(folders)} folders of {home}; name one of them as a source")
    return folders[0]


def _label(dataset: ImageDataset, row: int) -> str:
    label = dataset.label(row)
    return "" if label is None else dataset.classes[label]
