# SPDX-License-Identifier: Apache-2.0
"""Images with a map of the same size: classes for `segment.py`, depths for `depth.py`.

| layout     | images and maps of a part (train, val)                                                              |
|------------|-----------------------------------------------------------------------------------------------------|
| pairs      | a folder with `images/` and `masks/` (or annotations, labels, depth, depths, targets), equal stems   |
| parquet    | a Parquet file with columns image and mask (or annotation, label, depth, target)                    |
| ade20k     | `images/training`, `annotations/training`; `.../validation`                                         |
| voc        | `JPEGImages`, `SegmentationClass`, names in `ImageSets/Segmentation/{train,val}.txt`                 |
| cityscapes | `leftImg8bit/{train,val}/CITY`, `gtFine/{train,val}/CITY` (`_labelTrainIds`, else `_labelIds`)       |
| nyu, kitti | lines `IMAGE DEPTH` in a `.txt` file, paths from the folder of that file                             |
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from opendino.data.datasets import DecodeOptions
from opendino.data.datasets._base import DEFAULT
from opendino.data.decode import Decoded, decode, read_npy
from opendino.errors import DataError

_MAPS = ("masks", "mask", "annotations", "labels", "label", "depth", "depths", "targets", "target", "annotation")
_IMAGES = ("images", "image", "img", "rgb")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy", ".bmp", ".webp"}

CITYSCAPES_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
                  27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
"""Published label numbers that are measured, to their training numbers."""

Encoded = bytes | Path


class Pair(NamedTuple):
    """An image and its map, both as they are stored."""

    name: str
    image: Encoded
    target: Encoded


class Pairs:
    """Images and maps of one part.

    Args:
        name: where they come from.
        pairs: at least one.
        options: how images are decoded.
    """

    def __init__(self, name: str, pairs: Sequence[Pair], options: DecodeOptions = DEFAULT) -> None:
        if not pairs:
            raise DataError(f"{name}: holds no image with a map; see the layouts in the documentation of this protocol")
        self.name, self.pairs, self.options = name, list(pairs), options

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, index: int) -> Decoded:
        """The decoded image.

        Raises:
            DataError: it cannot be read.
        """
        one, options = self.pairs[index], self.options
        return decode(
            one.image, options.channels, orient=options.orient, value_range=options.value_range, name=one.name
        )

    def target(self, index: int) -> Shaped[np.ndarray, "H W"]:
        """The map as numbers: of classes, or of whatever a depth file counts in.

        Raises:
            DataError: it cannot be read, or is a picture of colours.
        """
        one = self.pairs[index]
        try:
            if isinstance(one.target, Path) and one.target.suffix == ".npy":
                values = read_npy(one.target.read_bytes())
            else:
                opened = Image.open(one.target if isinstance(one.target, Path) else BytesIO(one.target))
                with opened as picture:
                    values = np.asarray(picture)  # a palette's numbers, not its colours
        except (OSError, ValueError, SyntaxError, DataError) as error:
            raise DataError(f"{one.name}: its map cannot be read ({error})") from None
        if values.ndim != 2:
            raise DataError(f"{one.name}: its map has shape {values.shape}; one number a pixel was wanted")
        return values


def open_pairs(source: str, part: str, layout: str = "", options: DecodeOptions = DEFAULT) -> Pairs:
    """Images with maps from whatever the user has.

    Args:
        source: a folder or file; see the table of this module.
        part: "train" or "val"; which part of a published layout.
        layout: one of the table; found by what is there when empty.
        options: how images are decoded.

    Raises:
        DataError: there is nothing, or an image without its map.
    """
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; give images with maps, as a folder or Parquet file")
    kind = layout or guess(path)
    readers: dict[str, Callable[[Path, str], list[Pair]]] = {
        "pairs": _folders,
        "parquet": _parquet,
        "ade20k": _ade20k,
        "voc": _voc,
        "cityscapes": _cityscapes,
        "nyu": _lines,
        "kitti": _lines,
    }
    if kind not in readers:
        raise DataError(f"{source}: there is no layout {kind!r}; choose one of {', '.join(readers)}")
    return Pairs(source, readers[kind](path, part), options)


def guess(path: Path) -> str:
    """The layout of a place by what is there."""
    if path.is_file():
        return "nyu" if path.suffix == ".txt" else "parquet"
    for folder, layout in (("JPEGImages", "voc"), ("leftImg8bit", "cityscapes"), ("images/training", "ade20k")):
        if (path / folder).is_dir():
            return layout
    return "pairs"


def _folders(path: Path, _part: str) -> list[Pair]:
    found = [[path / name for name in names if (path / name).is_dir()] for names in (_IMAGES, _MAPS)]
    if not (found[0] and found[1]):
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{path}: a folder 'images' and a folder 'masks' (or 'depth') were wanted, and it holds {inside}"
        )
    return _paired(found[0][0], found[1][0])


def _paired(images: Path, maps: Path) -> list[Pair]:
    by_stem = {_stem(maps, file): file for file in _files(maps)}
    pairs = []
    for file in _files(images):
        stem = _stem(images, file)
        if stem not in by_stem:
            raise DataError(f"{file}: has no map {maps / stem}.png beside it; each image needs one")
        pairs.append(Pair(str(file), file, by_stem[stem]))
    return pairs


def _stem(root: Path, file: Path) -> str:
    return str(file.relative_to(root).with_suffix(""))


def _files(root: Path) -> list[Path]:
    return sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES)


def _ade20k(path: Path, part: str) -> list[Pair]:
    folder = {"train": "training", "val": "validation"}[part]
    return _paired(path / "images" / folder, path / "annotations" / folder)


def _voc(path: Path, part: str) -> list[Pair]:
    listing = path / "ImageSets" / "Segmentation" / f"{part}.txt"
    if not listing.is_file():
        raise DataError(f"{listing}: is missing; the Pascal VOC layout names its images there")
    names = listing.read_text(encoding="utf-8").split()
    return _existing(
        [Pair(n, path / "JPEGImages" / f"{n}.jpg", path / "SegmentationClass" / f"{n}.png") for n in names]
    )


def _cityscapes(path: Path, part: str) -> list[Pair]:
    pairs = []
    for file in sorted((path / "leftImg8bit" / part).glob("*/*_leftImg8bit.png")):
        stem = path / "gtFine" / part / file.parent.name / file.name.removesuffix("_leftImg8bit.png")
        trained = Path(f"{stem}_gtFine_labelTrainIds.png")
        pairs.append(Pair(str(file), file, trained if trained.is_file() else Path(f"{stem}_gtFine_labelIds.png")))
    return _existing(pairs)


def _lines(path: Path, _part: str) -> list[Pair]:
    """A list of pairs; lines whose depth is `None`, as KITTI's published lists have them, are left out."""
    if not path.is_file():
        raise DataError(f"{path}: a .txt file with a line IMAGE DEPTH for each image was wanted")
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any(len(row) < 2 for row in rows):
        raise DataError(f"{path}: a line does not hold an image and its depth map")
    root = path.parent
    return _existing(
        [Pair(row[0], root / row[0].lstrip("/"), root / row[1].lstrip("/")) for row in rows if row[1] != "None"]
    )


def _existing(pairs: list[Pair]) -> list[Pair]:
    for one in pairs:
        for file in (one.image, one.target):
            if isinstance(file, Path) and not file.is_file():
                raise DataError(f"{file}: is missing; each image needs its map")
    return pairs


def _parquet(path: Path, _part: str) -> list[Pair]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from None
    columns = [next((n for n in names if n in table.column_names), None) for names in (_IMAGES, _MAPS)]
    if None in columns:
        raise DataError(f"{path}: has the columns {', '.join(table.column_names)}; 'image' and 'mask' were wanted")
    images, maps = (_bytes(table[name].to_pylist()) for name in columns if name is not None)
    ids = table["id"].to_pylist() if "id" in table.column_names else [f"row {row}" for row in range(len(images))]
    return [Pair(f"{path}: {name}", *cells) for name, *cells in zip(ids, images, maps, strict=True)]


def _bytes(cells: list) -> list[bytes]:
    return [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
