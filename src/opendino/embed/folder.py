# SPDX-License-Identifier: Apache-2.0
"""`embed`: the features of a data set as a folder of shards, continued where it was interrupted.

| file                      | holds                                                                              |
|---------------------------|------------------------------------------------------------------------------------|
| `part-00007.parquet`      | a row an image: `row` (in the data set), `path`, `width`, `height`, `label`, features |
| `part-00007.cls.npy`      | with format=npy the features, one file each, in the rows of the table              |
| `part-00007.skipped.json` | images that could not be read, with the reason                                     |
| `plan.json`, `done.json`  | settings; counts, sizes and hashes of every file                                   |

A shard is written whole, its table last; a killed run leaves no half of one and no row twice. Batches begin anew with
every shard, so neither interruptions nor the number of processes change a number.
Read next: `stages/folder.py` and `stages/engines.py` (the folder and who works on it), `reading.py`.
"""

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from opendino.data.crops import size_of
from opendino.data.datasets import ImageDataset, open_dataset
from opendino.data.decode import Decoded
from opendino.data.fast import Decoder, choose_decoder, keep_to_one_thread, photo_of
from opendino.data.photo import Photo
from opendino.embed._progress import Within, watching
from opendino.embed.features import FeatureSettings, open_embedder, same_shape
from opendino.errors import ConfigError, DataError
from opendino.eval._results import model_hash
from opendino.files import check_place, write_whole
from opendino.stages.engines import Engine, run_stage
from opendino.stages.folder import Stage, alone, marker, parts_of, state_of, write_array, write_table

_log = logging.getLogger(__name__)

_PLAN = "plan.json"
_FREE = ("device", "threads")  # what the features do not depend on
_LATER = {"merge": 0.0}  # what older plans do not name, with its value in them: such folders are continued


@dataclass(frozen=True)
class EmbedConfig(FeatureSettings):
    """Settings of `opendino embed`, beside those of `FeatureSettings`.

    Attributes:
        format: "parquet" holds features as lists of fixed length, "npy" as arrays beside the tables.
        dtype: of the features on the disk.
        rows: images in a shard.
        batch_size: images in a forward pass.
        threads: that decode beside the model.
        value_range: the two values that become 0 and 1 in images of more than 8 bits; None where the file says it.
        orient: whether the EXIF orientation is applied.
        decoder: "pillow" sees the published pixels, "fast" the same but for rounding at several times the speed
            (`data/fast.py`); "auto" is fast where simplejpeg and OpenCV are installed.
        path_column: column of paths in a manifest; found by its name when empty.
        image_column: column of image bytes in a Parquet file; found by its name when empty.
        label_column: column of labels; found by its name when empty, "none" for no labels.
        engine: who makes the shards: processes of this machine, ranks of torchrun, or Ray.
        overwrite: remove what other settings or other images left in the folder.
    """

    format: Literal["parquet", "npy"] = "parquet"
    dtype: Literal["float32", "float16"] = "float32"
    rows: int = 2048
    batch_size: int = 32
    threads: int = 2
    value_range: tuple[float, float] | None = None
    orient: bool = True
    decoder: Decoder = "auto"
    path_column: str = ""
    image_column: str = ""
    label_column: str = ""
    engine: Engine = field(default_factory=Engine)
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.rows, self.batch_size, self.threads) < 1:
            raise ConfigError("rows, batch_size and threads: give 1 or more")
        if self.format == "npy" and self.fit == "whole" and "patches" in self.features:
            raise ConfigError(
                "format = npy: patch grids of fit=whole differ in size; use format=parquet, or another fit"
            )

    @property
    def settings(self) -> FeatureSettings:
        """What the embedder has to know."""
        return FeatureSettings(**{name: getattr(self, name) for name in FeatureSettings.__dataclass_fields__})


class Embedded(NamedTuple):
    """What came out.

    Attributes:
        folder: of the shards.
        images: that have features.
        skipped: that could not be read.
        made: whether there was anything left to do.
    """

    folder: Path
    images: int
    skipped: int
    made: bool


def embed(model: str, data: str, out: str | Path, config: EmbedConfig = EmbedConfig()) -> Embedded:
    """Write the features of every image of a data set.

    Args:
        model: anything that `opendino.load` takes.
        data: anything that `open_dataset` opens.
        out: folder; one that holds part of the same work is continued.
        config: which features, and how they are kept.

    Raises:
        DataError: no image can be read, or the folder holds something else.
        ConfigError: a setting that does not fit the model, a decoder that is not installed, the folder holds the
            work of other settings or lies among the images, or another command works in it.
        CheckpointError: the model cannot be opened.
    """
    out = Path(out)
    if Path(data).is_dir() and Path(data).resolve() in (out.resolve(), *out.resolve().parents):
        raise ConfigError(
            f"{out}: lies in {data}, which would not be the same when the work is continued; name a folder beside it"
        )
    if not out.is_dir():  # else it may be finished, whether it can be written or not
        check_place(out)
    chosen = choose_decoder(config.decoder, "decoder")
    _log.info("decoder %s (%s)", *chosen)
    config = replace(config, decoder=chosen.decoder)
    embedder = open_embedder(str(model), config.settings)
    dataset = _open(str(model), str(data), config)
    settings = {
        name: value
        for name, value in asdict(config).items()
        if name not in (*_FREE, "engine", "overwrite") and (name not in _LATER or value != _LATER[name])
    }
    inputs = {"data": _state(data, dataset), "model": model_hash(embedder.backbone)}
    shapes = {name: list(shape) for name, shape in embedder.shapes.items()}
    named = {"model_name": str(model), "data_name": str(data), "images": len(dataset), "shapes": shapes}
    stage = Stage(out, "embed", inputs, settings | named)
    task = _Shard(out, str(model), str(data), config)
    parts = -(-len(dataset) // config.rows)
    with alone(out), watching(out, parts):
        _refuse_other_work(stage, overwrite=config.overwrite)
        made = run_stage(stage, config.engine, parts, task, lambda: _sum_up(out))
    counts = json.loads((out / "done.json").read_text(encoding="utf-8"))["counts"]
    return Embedded(out, counts["images"], counts["skipped"], made)


@dataclass(frozen=True)
class _Shard:
    """Task: one shard."""

    folder: Path
    model: str
    data: str
    config: EmbedConfig

    def __call__(self, part: int) -> None:
        """Decode, embed, write; the table last."""
        config, dataset = self.config, _open(self.model, self.data, self.config)
        embedder = open_embedder(self.model, config.settings)
        if config.decoder == "fast":
            keep_to_one_thread()
        rows = range(part * config.rows, min((part + 1) * config.rows, len(dataset)))
        skipped: dict[int, str] = {}
        sizes: dict[int, tuple[int, int]] = {}

        def prepare(row: int) -> Tensor | None:
            try:
                image = _opened(dataset, row, config.decoder)
                prepared = embedder.prepare(image)
            except (DataError, OSError) as error:
                skipped[row] = str(error)
                return None
            sizes[row] = image.size if isinstance(image, Photo) else size_of(image)
            return prepared

        found: dict[int, list[np.ndarray]] = {}
        progress = Within(len(rows))
        batches = [rows[start : start + config.batch_size] for start in range(0, len(rows), config.batch_size)]
        with ThreadPoolExecutor(config.threads) as pool:
            ahead = [pool.submit(prepare, row) for row in batches[0]]
            for number, batch in enumerate(batches):
                prepared = [future.result() for future in ahead]
                ahead = [pool.submit(prepare, row) for row in batches[number + 1]] if number + 1 < len(batches) else []
                for places in same_shape(prepared):
                    features = embedder(torch.stack([prepared[at] for at in places]))  # type: ignore[misc]
                    arrays = [one.numpy().astype(config.dtype) for one in features.values()]
                    for i, at in enumerate(places):
                        found[batch[at]] = [array[i] for array in arrays]
                progress.add(len(batch))
        self._write(part, dataset, found, sizes, skipped)

    def _write(
        self,
        part: int,
        dataset: ImageDataset,
        found: dict[int, list[np.ndarray]],
        sizes: dict[int, tuple[int, int]],
        skipped: dict[int, str],
    ) -> None:
        rows = sorted(found)
        columns: dict[str, Any] = {
            "row": pa.array(rows, pa.int64()),
            "path": pa.array([dataset.identify(row) for row in rows], pa.string()),
            "width": pa.array([sizes[row][1] for row in rows], pa.int32()),
            "height": pa.array([sizes[row][0] for row in rows], pa.int32()),
        }
        if dataset.targets is not None:
            columns["label"] = pa.array([_label(dataset, row) for row in rows], pa.string())
        embedder = open_embedder(self.model, self.config.settings)
        for place, (name, shape) in enumerate(embedder.shapes.items()):
            arrays = [found[row][place] for row in rows]
            if self.config.format == "npy":
                stacked = np.stack(arrays) if arrays else np.zeros((0, *shape), self.config.dtype)
                write_array(self.folder / f"part-{part:05d}.{name}.npy", stacked)
            else:
                columns |= _as_lists(name, arrays, shape, self.config.dtype)
        told = [{"row": row, "path": dataset.identify(row), "reason": skipped[row]} for row in sorted(skipped)]
        place = self.folder / f"part-{part:05d}.skipped.json"
        write_whole(place, json.dumps(told, indent=1) + "\n", error=DataError)
        write_table(marker(self.folder, part), pa.table(columns))


def _as_lists(name: str, arrays: list[np.ndarray], shape: tuple[int, ...], dtype: str) -> dict[str, pa.Array]:
    """A column of lists: of fixed length where all features have one shape; else with columns of their grid's sides."""
    kind = pa.from_numpy_dtype(np.dtype(dtype))
    flat = np.concatenate([array.ravel() for array in arrays]) if arrays else np.zeros(0, dtype)
    if 0 not in shape:
        return {name: pa.FixedSizeListArray.from_arrays(pa.array(flat, kind), int(np.prod(shape)))}
    starts = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int64)
    lists = pa.LargeListArray.from_arrays(pa.array(starts), pa.array(flat, kind))
    sides = {
        f"{name}_{side}": pa.array([array.shape[i] for array in arrays], pa.int32()) for i, side in enumerate("hw")
    }
    return {name: lists, **sides}


@lru_cache(maxsize=1)
def _open(model: str, data: str, config: EmbedConfig) -> ImageDataset:
    return open_dataset(
        data,
        channels=open_embedder(model, config.settings).backbone.in_chans,
        value_range=config.value_range,
        orient=config.orient,
        path_column=config.path_column,
        image_column=config.image_column,
        label_column=config.label_column,
    )


def _opened(dataset: ImageDataset, row: int, decoder: Decoder) -> Decoded | Photo:
    """An image of the data set, for the fast way where that can take it."""
    photo = photo_of(dataset, row) if decoder == "fast" else None
    return dataset.image(row) if photo is None else photo


def _label(dataset: ImageDataset, row: int) -> str | None:
    label = dataset.label(row)
    return None if label is None or label < 0 else dataset.classes[label]


def _state(data: str, dataset: ImageDataset) -> str:
    """What changes when the images do: their names, and the sizes and times of the files that hold them."""
    found = hashlib.sha256(state_of(data).encode())
    for row in range(len(dataset)):
        found.update(f"{dataset.identify(row)}\n".encode())
    return found.hexdigest()[:32]


def _refuse_other_work(stage: Stage, *, overwrite: bool) -> None:
    """An hour's work of other settings is not removed without being asked to."""
    path = stage.folder / _PLAN
    if overwrite or not path.exists():
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # a plan that cannot be read protects nothing
    if there == stage.plan:
        return
    told = _differences(there, stage.plan)
    raise ConfigError(
        f"{stage.folder}: holds features that were made otherwise ({told}); name another folder with --out, give the "
        "same settings to continue, or say overwrite=true"
    )


def _differences(there: dict[str, Any], wanted: dict[str, Any]) -> str:
    if there.get("stage") != wanted["stage"]:
        return f"by the stage {there.get('stage')}"
    told = []
    for group in ("parameters", "inputs"):
        before, now = _LATER | there.get(group, {}), _LATER | wanted[group]
        told += [name if group == "inputs" else f"{name}={before.get(name)}"
                 for name in now if before.get(name) != now[name]]  # fmt: skip
    return ", ".join(told[:4]) or f"by {there.get('made_by')}"


def _sum_up(folder: Path) -> dict[str, Any]:
    """Count, and list what was skipped in one file."""
    images = sum(pq.read_metadata(path).num_rows for path in parts_of(folder))
    told = [one for path in sorted(folder.glob("part-*.skipped.json")) for one in json.loads(path.read_text("utf-8"))]
    if not images:
        raise DataError(f"{folder}: none of {len(told)} images could be read; the first: {told[0]['reason']}")
    return {"images": images, "skipped": len(told), "reasons": [one["reason"] for one in told[:20]]}
