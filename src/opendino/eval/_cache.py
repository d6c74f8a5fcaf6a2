# SPDX-License-Identifier: Apache-2.0
"""Features on the disk, so that the second protocol on the same model and images does not run the model again.

A file is named by a hash of what it depends on: the weights, the images, and the way of an image into the model. Files
of a folder are told by path, size and time of change, images inside a Parquet file by their bytes. Nothing is ever out
of date; files may be removed at any time.
"""

import contextlib
import hashlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from opendino.data.datasets import ImageDataset
from opendino.distributed import all_reduce_sum, world_size
from opendino.errors import OpendinoError
from opendino.eval._results import model_hash
from opendino.eval.adapters import Backbone
from opendino.files import save_tensors, write_whole

_VERSION = "features 1"
_log = logging.getLogger(__name__)


class Kept(NamedTuple):
    """Content of a file: named tensors, and the names of images that could not be read."""

    tensors: dict[str, Tensor]
    skipped: tuple[str, ...]


def wanted(folder: str) -> bool:
    """Whether a setting names a folder."""
    return folder not in ("", "off")


def key(backbone: Backbone, dataset: ImageDataset, size: int, resize: int, precision: str, blocks: int) -> str:
    """Hash of everything that features depend on."""
    spec = backbone.input_spec
    # How positions are resized is not in the weights.
    rule = [getattr(backbone, name, None) for name in ("interpolate_offset", "interpolate_antialias", "num_heads")]
    way = [_VERSION, size, resize, precision, blocks, spec.channels, spec.mean, spec.std, rule, type(backbone).__name__]
    whole = f"{json.dumps(way)}{model_hash(backbone)}{data_hash(dataset)}"
    return hashlib.sha256(whole.encode()).hexdigest()[:24]


def data_hash(dataset: ImageDataset) -> str:
    """SHA-256 of a data set's images, in their order, and of how they are decoded; labels do not count."""
    found = hashlib.sha256(repr(dataset.options).encode())
    for row in range(len(dataset)):
        source = dataset.read(row)
        if isinstance(source, bytes):
            found.update(hashlib.sha256(source).digest())
            continue
        state = ""
        with contextlib.suppress(OSError):
            at = source.stat()
            state = f"{at.st_size} {at.st_mtime_ns}"
        found.update(f"{source.absolute()} {state}\n".encode())
    return found.hexdigest()


def read(folder: str, name: str) -> Kept | None:
    """What is kept under a name; None where nothing is, or not on every process."""
    path, kept = Path(folder) / f"{name}.safetensors", None
    with contextlib.suppress(OSError, SafetensorError, ValueError, KeyError), safe_open(path, framework="pt") as file:
        skipped = tuple(json.loads((file.metadata() or {})["skipped"]))
        kept = Kept({part: file.get_tensor(part) for part in file.keys()}, skipped)  # noqa: SIM118  no mapping
    if world_size() > 1:
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        everywhere = int(all_reduce_sum(torch.tensor(int(kept is not None), device=device))) == world_size()
        return kept if everywhere else None
    return kept


def write(folder: str, name: str, tensors: dict[str, Tensor], skipped: tuple[str, ...]) -> None:
    """Keep features; a disk that cannot take them is named in a warning, and costs only time later."""
    whole = {part: tensor.contiguous() for part, tensor in tensors.items()}
    try:
        write_whole(
            Path(folder) / f"{name}.safetensors",
            lambda path: save_tensors(whole, path, metadata={"skipped": json.dumps(skipped)}),
        )
    except (OpendinoError, SafetensorError) as error:
        _log.warning("features are not kept in %s (%s)", folder, error)
