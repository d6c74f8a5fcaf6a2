# SPDX-License-Identifier: Apache-2.0
"""An index of one feature of an embedded folder: unit vectors as one array that is mapped, not read.

| file             | holds                                                                   |
|------------------|-------------------------------------------------------------------------|
| `vectors.npy`    | float32 [n, D], each of length 1                                        |
| `images.parquet` | row in the data set, path, width, height, label of each                 |
| `graph.faiss`    | with an approximate engine, faiss's index                               |
| `index.json`     | what it was made from; written last                                     |

The exact engine compares a query with every vector, which takes one pass over `vectors.npy`; the approximate ones
(`hnsw`, `ivf`) look at a small part and compare what they find again in float32. Read next: `neighbours/exact.py`.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from opendino import config
from opendino.data.datasets import ImageDataset, open_dataset
from opendino.data.decode import Decoded, decode
from opendino.data.fast import choose_decoder
from opendino.data.photo import Photo, open_photo
from opendino.embed import Embedder, FeatureSettings, open_embedder, reading
from opendino.errors import ConfigError, DataError
from opendino.eval._results import model_hash
from opendino.files import check_place, read_json, write_whole, writing
from opendino.neighbours import approximate
from opendino.neighbours.exact import SearchConfig, nearest
from opendino.neighbours.matrix import Held
from opendino.stages.folder import alone, digest_of, plan_of, write_table

_INDEX, _VECTORS, _IMAGES, _GRAPH = "index.json", "vectors.npy", "images.parquet", "graph.faiss"
_FORMAT = "opendino index 1"
_K = 10  # neighbours that the breadth of an approximate search is made for
EXACT = SearchConfig()
_FEW = 32  # queries
_log = logging.getLogger(__name__)


class Hit(NamedTuple):
    """One image that was found.

    Attributes:
        score: cosine with the query.
        position: in the index.
        row: in the data set.
        path: its name.
    """

    score: float
    position: int
    row: int
    path: str


class Vectors(Held):
    """Unit vectors on the disk, as the search reads them; see `neighbours.matrix.Matrix`."""

    largest = 1.0

    def __init__(self, path: Path) -> None:
        # Mapped copy-on-write: torch wants memory that could be written to.
        self._all = self._held = torch.from_numpy(np.load(path, mmap_mode="c"))
        self.dim = self._all.shape[1]

    def __len__(self) -> int:
        return len(self._all)

    def take(self, positions: Int64[np.ndarray, " m"]) -> Float32[Tensor, "m D"]:
        """Some rows."""
        return self._all[torch.from_numpy(positions)]

    def block(self, start: int, stop: int) -> Float32[Tensor, "m D"]:
        """Rows from start to stop; not a copy."""
        return self._all[start:stop]


class Index:
    """An index that is open.

    Args:
        folder: that `build` wrote.

    Attributes:
        table: row, path, width, height, label of each image.
        vectors: of each image.
        about: what the index was made from.

    Raises:
        DataError: there is no index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.about = folder, _read(folder)
        try:
            self.table = pq.read_table(folder / _IMAGES)
            self.vectors = Vectors(folder / _VECTORS)
            self.config = SearchConfig(**self.about["search"])
            self._row: Int64[np.ndarray, " n"] = self.table["row"].to_numpy()
        except Exception as error:  # readers of damaged tables and arrays raise nearly anything
            raise DataError(f"{folder}: its files cannot be read ({error}); build the index again") from None
        if len(self.table) != len(self.vectors):
            raise DataError(f"{folder}: {len(self.vectors)} vectors of {len(self.table)} images; build the index again")

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Float[Tensor, "q D"], k: int = 10) -> tuple[Float32[Tensor, "q k"], Int64[Tensor, "q k"]]:
        """Cosines and positions of the k images most like each query, largest first.

        Args:
            queries: vectors of any length.
            k: at most the number of images is given.

        Returns:
            -inf and -1 for what an approximate engine does not find.

        Raises:
            DataError: a query is of another width, or has no direction.
        """
        if queries.shape[1] != self.vectors.dim:
            raise DataError(
                f"{self.folder}: a query of {queries.shape[1]} numbers; its vectors have {self.vectors.dim}"
            )
        lengths = queries.norm(dim=1)
        if not (torch.isfinite(lengths) & (lengths > 0)).all():
            raise DataError("search: a query is a zero vector or not finite, so it has no direction")
        queries, k = F.normalize(queries.float(), dim=1), min(max(k, 1), len(self))
        if self.config.engine == "exact":
            # For a few queries reading the vectors is all the work: making short copies of them would only add to it.
            few = len(queries) < _FEW and self.config.precision == "auto"
            how = replace(self.config, precision="fp32") if few else self.config
            return nearest(queries, self.vectors, k, how)
        return approximate.among(self._graph, queries, self.vectors, k)

    def hits(self, queries: Float[Tensor, "q D"], k: int = 10, *, leave_out: Sequence[int] = ()) -> list[list[Hit]]:
        """As `search`, with names.

        Args:
            queries: vectors of any length.
            k: images for each query.
            leave_out: for each query the position that is not wanted, such as its own; -1 or none for no such.
        """
        scores, places = self.search(queries, k + bool(leave_out))
        out = []
        for number, (row_scores, row_places) in enumerate(zip(scores.tolist(), places.tolist(), strict=True)):
            own = leave_out[number] if leave_out else -1
            # An approximate engine may find fewer, and says -1.
            found = [self.hit(s, p) for s, p in zip(row_scores, row_places, strict=True) if p not in (own, -1)]
            out.append(found[:k])
        return out

    def hit(self, score: float, position: int) -> Hit:
        """An image with its names."""
        return Hit(score, position, int(self._row[position]), self.table["path"][position].as_py())

    def position_of(self, row: int) -> int:
        """Position of a row of the data set.

        Raises:
            DataError: that image is not in the index.
        """
        place = int(np.searchsorted(self._row, row))
        if place == len(self._row) or self._row[place] != row:
            raise DataError(
                f"{self.folder}: row {row} is not in the index: it has {len(self)} of the "
                f"rows 0 to {self._row[-1]}; images that could not be read have none"
            )
        return place

    @property
    def opened(self) -> dict[str, Any]:
        """Arguments of `open_dataset` that the images were opened with."""
        opened = dict(self.about["opened"])
        limits = opened["value_range"]
        return opened | {"value_range": None if limits is None else (limits[0], limits[1])}

    @property
    def model(self) -> str:
        """The model, as it was named when the images were embedded."""
        return self.about["model"]

    def embedder(self, model: str = "", device: str = "auto") -> Embedder:
        """What makes the vector of a new image in the way of the others.

        Args:
            model: where the model is now; empty for where it was.
            device: "auto" takes a CUDA device where there is one.

        Raises:
            CheckpointError: the model cannot be opened.
            ConfigError: it has other weights than the model that embedded the images.
        """
        settings = config.load(FeatureSettings, None, (), self.about["embedded"] | {"device": device})
        embedder = open_embedder(model or self.model, settings)
        if self.about.get("weights", "") not in ("", model_hash(embedder.backbone)):
            raise ConfigError(
                f"{model or self.model}: has other weights than the model that embedded {self.folder}, so "
                "cosines with them mean nothing; name that model, or embed the images again"
            )
        return embedder

    @cached_property
    def decoder(self) -> Literal["pillow", "fast"]:
        """Who decoded the images; Pillow, with a warning, where that is not recorded or the fast one is missing."""
        if "decoder" not in self.about:
            _log.warning("%s: does not say who decoded its images, and queries are decoded by Pillow; if that was the "
                         "fast decoder scores may differ by 0.001; opendino search build EMBEDDED out=%s makes it anew",
                         self.folder, self.folder)  # fmt: skip
        chosen = choose_decoder("auto" if self.about.get("decoder") == "fast" else "pillow").decoder
        if chosen != self.about.get("decoder", chosen):
            _log.warning("%s: its images were decoded by the fast decoder, which is not installed here; scores may "
                         "differ by 0.001; pip install 'opendino[fast]'", self.folder)  # fmt: skip
        return chosen

    def open_image(self, source: bytes | Path, channels: int, name: str | None = None) -> Decoded | Photo:
        """A new image, decoded as those of the index were, for `embedder` and `vectors_of`.

        Args:
            source: the encoded bytes, or a path to them.
            channels: of the model.
            name: what errors call it; the path by default.

        Raises:
            DataError: it cannot be decoded, or not to such channels.
        """
        opened = self.opened
        photo = None
        if self.decoder == "fast":
            photo = open_photo(source, channels, orient=opened["orient"], name=name or str(source))
        if photo is not None:
            return photo
        return decode(source, channels, orient=opened["orient"], value_range=opened["value_range"], name=name)

    def vectors_of(self, images: Sequence[Decoded | Photo], embedder: Embedder) -> Float32[Tensor, "q D"]:
        """The vectors of new images."""
        return torch.stack([found[self.about["feature"]] for found in embedder.of(images)])

    @cached_property
    def dataset(self) -> ImageDataset:
        """The images themselves.

        Raises:
            DataError: they are not where they were.
        """
        return open_dataset(self.about["data"], **self.opened)

    @cached_property
    def _graph(self) -> Any:  # noqa: ANN401  faiss has no types
        return approximate.read(self.folder / _GRAPH, self.config)


def build(embedded: str | Path, out: str | Path = "", feature: str = "", search: SearchConfig = EXACT) -> Index:
    """Make the index of an embedded folder.

    Args:
        embedded: folder that `opendino embed` finished.
        out: folder of the index; `index` in the embedded folder when empty.
        feature: one that is a vector for each image; the first such when empty.
        search: how neighbours are found.

    Raises:
        DataError: the folder is not finished, or has no such feature.
        ConfigError: faiss is asked for and not installed, or another command works in the folder.
    """
    embedded, found = Path(embedded), reading.summary(embedded)
    vectors = [name for name, shape in found.shapes.items() if len(shape) == 1]
    if not vectors or (feature and feature not in vectors):
        wanted = feature or "no feature"
        raise DataError(f"{embedded}: {wanted} is a vector for each image; there are {', '.join(vectors) or 'none'}")
    feature, out = feature or vectors[0], Path(out or embedded / "index")
    about = _about(embedded, feature, found, search)
    if (out / _INDEX).exists() and _read(out) == about:
        return Index(out)
    if out.is_file():
        raise DataError(f"{out}: is a file; name a folder with out=")
    foreign = out.exists() and any(not entry.name.startswith(".") for entry in out.iterdir())  # locks are hidden
    if foreign and not (out / _INDEX).exists() and not (out / _VECTORS).exists():
        raise DataError(f"{out}: holds files that are no index; name another folder with out=")
    if not out.is_dir():
        check_place(out)
    with alone(embedded if embedded in out.parents else out):
        if not (out / _INDEX).exists() or _read(out) != about:  # else another process has built it while we waited
            _build(embedded, out, about, found, search)
    return Index(out)


def _build(embedded: Path, out: Path, about: dict[str, Any], found: reading.Summary, search: SearchConfig) -> None:
    with writing(out, DataError):
        out.mkdir(parents=True, exist_ok=True)
        (out / _INDEX).unlink(missing_ok=True)
    keep = _write_vectors(out / _VECTORS, embedded, about["feature"], found)
    write_table(out / _IMAGES, reading.table(embedded).filter(pa.array(keep)))
    if search.engine != "exact":
        approximate.write(out / _GRAPH, Vectors(out / _VECTORS), search, _K)
    write_whole(out / _INDEX, json.dumps(about, indent=1) + "\n", durable=True, error=DataError)


def open_index(path: str | Path, feature: str = "") -> Index:
    """An index, or the one that an embedded folder holds, which is made where it is missing.

    Raises:
        DataError: it is neither.
    """
    path = Path(path)
    if (path / _INDEX).exists():
        return Index(path)
    if (path / "index" / _INDEX).exists() and not feature:
        return Index(path / "index")
    if not (path / "plan.json").exists():
        raise DataError(f"{path}: is no index and no folder of features; `opendino embed DATA --out DIR` makes one")
    return build(path, feature=feature)


def _about(embedded: Path, feature: str, found: reading.Summary, search: SearchConfig) -> dict[str, Any]:
    settings = found.settings
    embedded_by = {name: settings[name] for name in FeatureSettings.__dataclass_fields__ if name in settings}
    opened = {name: settings[name] for name in ("value_range", "orient", "path_column", "image_column", "label_column")}
    about = {
        "format": _FORMAT,
        "features": digest_of(embedded),
        "feature": feature,
        "model": found.model,
        "weights": plan_of(embedded)["inputs"]["model"],
        "data": settings["data_name"],
        "embedded": embedded_by,
        "opened": opened,
        "decoder": settings.get("decoder", "pillow"),  # the only one when plans did not name it
        "search": asdict(replace(search, device="auto")),
    }
    return json.loads(json.dumps(about))


def _write_vectors(path: Path, embedded: Path, feature: str, found: reading.Summary) -> np.ndarray:
    """Unit vectors, written shard by shard; which rows have a direction."""
    keep = []
    for shard in reading.shards(embedded, feature):
        lengths = np.linalg.norm(shard.astype(np.float32), axis=1)
        keep.append(np.isfinite(lengths) & (lengths > 0))
    kept = np.concatenate(keep)
    if not kept.all():
        _log.warning("%s: %d images left out, their vectors are zero or not finite", embedded, int((~kept).sum()))
    shape = (int(kept.sum()), found.shapes[feature][0])

    def save(place: Path) -> None:
        out = np.lib.format.open_memmap(place, "w+", np.float32, shape)
        start = 0
        for shard, good in zip(reading.shards(embedded, feature), keep, strict=True):
            part = F.normalize(torch.from_numpy(shard[good].astype(np.float32)), dim=1).numpy()
            out[start : start + len(part)] = part
            start += len(part)
        out.flush()

    write_whole(path, save, error=DataError)
    return kept


def _read(folder: Path) -> dict[str, Any]:
    try:
        about = read_json(folder / _INDEX)
        if not isinstance(about, dict):
            raise TypeError
    except (OSError, ValueError, TypeError):
        raise DataError(f"{folder}: is no index; `opendino search build EMBEDDED out={folder}` makes one") from None
    if about.get("format") != _FORMAT:
        raise ConfigError(f"{folder}: an index of another version ({about.get('format')}); build it again")
    return about
