# SPDX-License-Identifier: Apache-2.0
"""Stage 7: selections to one manifest that `opendino pretrain data=manifest.parquet` takes; images stay where they are.

A manifest has a row for every image: source and key (see `data/datasets/pointers.py`), weight (times in an epoch),
the path of its clusters from the widest to the narrowest, why it is there, and its set, label and size.
"""

import io
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from opendino.curate._features import Rows
from opendino.curate.index import read_index, usable
from opendino.data.datasets.pointers import PointerDataset, with_image_column
from opendino.data.samplers import keyed_rng
from opendino.errors import ConfigError, DataError
from opendino.files import write_whole
from opendino.stages.engines import run_whole
from opendino.stages.folder import Stage, digest_of, parts_of, write_table

MANIFEST = "manifest.parquet"
PARTS = ("dedup", "decontaminate", "retrieve", "prune", "balance")
"""Stages that select images."""


@dataclass(frozen=True)
class MixConfig:
    """What the manifest is made of.

    Attributes:
        parts: names of selections, "balance", "retrieve", "dedup", "decontaminate" or "prune", or `set:SOURCE` for a
            source taken as it is (all its usable images). Empty takes the last selection that was made.
        weights: share of each part in an epoch; empty takes the parts as they are, an image of several counted by the
            part that draws it most often.
        size: images in an epoch, for weights; 0 takes as many as the parts have.
        tar: images in each tar of an export; 0 for none.
        seed: of the images that are drawn once more, or left out.
    """

    parts: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    size: int = 0
    tar: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS and not part.startswith("set:"):
                raise ConfigError(f"mix.parts: {part} is no selection; there are {', '.join(PARTS)}, and set:SOURCE")
        if self.weights and (len(self.weights) != len(self.parts) or min(self.weights) < 0 or not sum(self.weights)):
            raise ConfigError(
                f"mix.weights = {list(self.weights)}: give one of 0 or more for each of mix.parts, not all 0"
            )
        if self.size < 0 or self.tar < 0:
            raise ConfigError("mix.size and mix.tar: give 0 or more")


def run(out: Path, index: Path, selections: dict[str, Path], config: MixConfig, image_column: str = "") -> Path:
    """Write the manifest, and the tars where they are asked for.

    Args:
        out: folder of the whole curation; the manifest is `out/manifest/manifest.parquet`.
        index: of the pool.
        selections: name to folder of what was selected; the last one is taken where `config.parts` is empty.
        config: the mixture.
        image_column: of Parquet sources.

    Raises:
        ConfigError: a part is not there.
        DataError: nothing is left.
    """
    folder = out / "manifest"
    parts = config.parts or tuple(selections)[-1:]
    for part in parts:
        if part not in selections and not part.startswith("set:"):
            raise ConfigError(
                f"mix.parts: {part} is no selection of this run; there are {', '.join(selections)}, and set:SOURCE"
            )
    used = {part: selections[part] for part in parts if part in selections}
    paths = selections.get("balance")
    inputs = {name: digest_of(path) for name, path in ({"index": index} | used).items()}
    inputs |= {"paths": digest_of(paths)} if paths else {}
    stage = Stage(folder, "manifest", inputs, asdict(config) | {"parts": parts, "image_column": image_column})

    def work() -> dict[str, Any]:
        rows, times, reason = mixture([_part(part, index, used) for part in parts], parts, config)
        if not len(rows):
            raise DataError(f"{folder}: no image is left for the manifest; loosen the stages before")
        table = _table(index, rows, times, reason, paths)
        write_table(
            folder / MANIFEST, table.replace_schema_metadata(with_image_column(table.schema, image_column).metadata)
        )
        if config.tar:
            _export(folder, table, config.tar, image_column)
        counts = {part: int(sum(part in why.split("+") for why in reason)) for part in parts}
        return {"images": len(rows), "epoch": int(times.sum()), "parts": counts}

    run_whole(stage, work)
    return folder


def _part(part: str, index: Path, used: dict[str, Path]) -> tuple[Rows, Int64[np.ndarray, " n"]]:
    """Rows of a selection, and how often it draws each."""
    if part in used:
        rows = np.load(used[part] / "kept.npy")
        times = used[part] / "times.npy"
        return rows, np.load(times) if times.exists() else np.ones(len(rows), dtype=np.int64)
    wanted, found = part.removeprefix("set:"), []
    there = set()
    for path in parts_of(index):
        table = pq.read_table(path, columns=["row", "set"])
        there |= set(table["set"].unique().to_pylist())
        found.append(
            table["row"].to_numpy()[np.array([name == wanted for name in table["set"].to_pylist()], dtype=bool)]
        )
    if wanted not in there:
        raise ConfigError(f"mix.parts: {part} is no source of this index; there are {', '.join(sorted(there))}")
    rows = np.intersect1d(np.concatenate(found), usable(index))
    return rows, np.ones(len(rows), dtype=np.int64)


def mixture(parts: list[tuple[Rows, Rows]], names: tuple[str, ...], config: MixConfig) -> tuple[Rows, Rows, list[str]]:
    """Rows of all parts, increasing; how often each counts; and the parts it comes from, joined by +.

    With weights each part gets its share of the epoch: every image equally often, some at random once more.

    Args:
        parts: rows and times of each part.
        names: of the parts.
        config: weights, size and seed.
    """
    if config.weights:
        total = config.size or sum(int(times.sum()) for _, times in parts)
        goals = largest_remainder(np.array(config.weights), total)
        parts = [
            (rows, _to_size(times, int(goal), keyed_rng(config.seed, "mix", number)))
            for number, ((rows, times), goal) in enumerate(zip(parts, goals, strict=True))
        ]
    everything = np.concatenate([rows for rows, _ in parts])
    unique, place = np.unique(everything, return_inverse=True)
    times = np.concatenate([times for _, times in parts])
    total = np.zeros(len(unique), dtype=np.int64)
    if config.weights:
        np.add.at(total, place, times)
    else:
        np.maximum.at(total, place, times)
    why = [""] * len(unique)
    owners = np.repeat(np.arange(len(parts)), [len(rows) for rows, _ in parts])
    for at, owner, count in zip(place.tolist(), owners.tolist(), times.tolist(), strict=True):
        if count:
            why[at] += f"+{names[owner]}" if why[at] else names[owner]
    kept = np.flatnonzero(total)
    return unique[kept], total[kept], [why[at] for at in kept.tolist()]


def largest_remainder(weights: np.ndarray, total: int) -> Int64[np.ndarray, " n"]:
    """Whole numbers in proportion to weights whose sum is exactly the total."""
    exact = weights / weights.sum() * total
    found = np.floor(exact).astype(np.int64)
    order = np.lexsort([np.arange(len(exact)), found - exact])
    found[order[: total - int(found.sum())]] += 1
    return found


def _to_size(times: Int64[np.ndarray, " n"], goal: int, rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """The times scaled to a sum, what is left over at random."""
    if not times.sum():
        return times
    whole, rest = divmod(goal, int(times.sum()))
    drawn = np.repeat(np.arange(len(times)), times)
    more = np.bincount(drawn[rng.permutation(len(drawn))[:rest]], minlength=len(times))
    return times * whole + more


def _table(index: Path, rows: Rows, times: np.ndarray, reason: list[str], paths: Path | None) -> pa.Table:
    table = read_index(index, rows, ["set", "source", "key", "label", "width", "height"])
    path = [""] * len(rows)
    if paths is not None:
        known, clusters = np.load(paths / "kept.npy"), np.load(paths / "paths.npy")
        at = np.searchsorted(known, rows)
        for number, place in enumerate(at.tolist()):
            if place < len(known) and known[place] == rows[number]:
                path[number] = "/".join(str(cluster) for cluster in clusters[place][::-1])
    columns = {
        "source": table["source"],
        "key": table["key"],
        "weight": pa.array(times, pa.int32()),
        "cluster_path": pa.array(path, pa.string()),
        "reason": pa.array(reason, pa.string()),
        "set": table["set"],
        "label": table["label"],
        "width": table["width"],
        "height": table["height"],
        "row": pa.array(rows, pa.int64()),
    }
    labels = set(table["label"].unique().to_pylist())
    if "" in labels:  # labels that are not there for all are none for pretraining
        del columns["label"]
    return pa.table(columns)


def _export(folder: Path, table: pa.Table, each: int, image_column: str) -> None:
    """Copies of the images as tars, `000000012.jpg` and so on, with the same bytes each time."""
    images = PointerDataset.of(table, image_column=image_column)
    formats = {"jpeg": "jpg", "jpg": "jpg"}
    for part in range(-(-len(table) // each)):

        def write(place: Path, part: int = part) -> None:
            with tarfile.open(place, "w", format=tarfile.USTAR_FORMAT) as archive:
                for row in range(part * each, min((part + 1) * each, len(table))):
                    source = images.read(row)
                    data = source if isinstance(source, bytes) else source.read_bytes()
                    name = Path(table["key"][row].as_py()).suffix.lower().removeprefix(".") or _suffix(data)
                    member = tarfile.TarInfo(f"{row:09d}.{formats.get(name, name)}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))

        write_whole(folder / f"images-{part:05d}.tar", write, error=DataError)


def _suffix(data: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return (image.format or "bin").lower()
