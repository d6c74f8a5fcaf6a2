# SPDX-License-Identifier: Apache-2.0
"""What is found out about the images and the machine before settings are chosen; read `settings.py` next."""

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from opendino.data.datasets import ImageDataset
from opendino.data.decode import NPY_MAGIC, read_npy
from opendino.data.fast import Chosen, choose_decoder
from opendino.data.tiff import is_tiff, read_tiff, samples_of
from opendino.errors import DataError
from opendino.machine import cores

_SAMPLED = 64
_GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


class Values(NamedTuple):
    """What numbers the pixels of images of more than 8 bits have.

    Attributes:
        low: the smallest that was seen.
        high: the largest.
        whole: whether they are unsigned 16-bit numbers, which have a range of their own; else they are floats or
            whole numbers of another size.
    """

    low: float
    high: float
    whole: bool


@dataclass(frozen=True)
class DataFacts:
    """What the settings need to know of a data set.

    Attributes:
        images: their number.
        short_side: median over a sample of the shorter side, pixels.
        channels: that all of the sample have in common; 3 for colour, and for grey mixed with colour.
        labelled: whether there are labels.
        values: of the sample's pixels, where all of it has more than 8 bits.
    """

    images: int = 10_000
    short_side: int = 224
    channels: int = 3
    labelled: bool = False
    values: Values | None = None


@dataclass(frozen=True)
class MachineFacts:
    """What the settings need to know of the machine.

    Attributes:
        device: "cuda" or "cpu".
        cores: that this process may use.
        memory: of the device, bytes; 0 where it does not matter.
        bf16: whether the device multiplies bfloat16 faster than float32.
        processes: that share the work, one device each.
        decoder: that can be had, and why.
    """

    device: str = "cpu"
    cores: int = 1
    memory: int = 0
    bf16: bool = False
    processes: int = 1
    decoder: Chosen = Chosen("pillow", "the one that is always there")


def look_at_data(dataset: ImageDataset) -> DataFacts:
    """Sizes, channels and values of up to 64 images spread over a data set.

    Raises:
        DataError: none of them can be read.
    """
    found, problem = [], ""
    for index in np.unique(np.linspace(0, len(dataset) - 1, _SAMPLED).astype(int)).tolist():
        try:
            found.append(_glance(dataset.read(index)))
        except Exception as error:  # decoders of broken files raise nearly anything
            problem = problem or f"{dataset.identify(index)}: {' '.join(str(error).split())}"
    if not found:
        raise DataError(
            f"{dataset.name}: none of the images looked at can be read ({problem}); check the files or name other data"
        )
    channels = {one.channels for one in found}
    return DataFacts(
        images=len(dataset),
        short_side=int(np.median([min(one.height, one.width) for one in found])),
        channels=channels.pop() if len(channels) == 1 else 3,
        labelled=dataset.targets is not None,
        values=_common([one.values for one in found]),
    )


def look_at_machine(device: str = "auto") -> MachineFacts:
    """Device, cores and memory that this process has.

    Args:
        device: "cuda", "cpu", or "auto" for a CUDA device where there is one.
    """
    import torch

    decoder = choose_decoder("auto")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if device == "cpu" or not torch.cuda.is_available():
        # The instructions for it; without them bfloat16 is emulated and slow.
        bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return MachineFacts("cpu", cores(), 0, bf16, processes, decoder)
    memory = torch.cuda.get_device_properties(0).total_memory
    return MachineFacts("cuda", cores(), memory, torch.cuda.is_bf16_supported(), processes, decoder)


class _Glance(NamedTuple):
    height: int
    width: int
    channels: int
    values: Values | None = None


def _glance(source: bytes | Path) -> _Glance:
    """Size, channels and values of an encoded image; the pixels of 8-bit formats are not decoded for it."""
    from PIL import Image

    if source.suffix == ".npy" if isinstance(source, Path) else source.startswith(NPY_MAGIC):
        return _of_array(read_npy(source.read_bytes() if isinstance(source, Path) else source))
    if isinstance(source, Path) and source.suffix.lower() in (".tif", ".tiff"):
        source = source.read_bytes()
    if isinstance(source, bytes) and is_tiff(source) and samples_of(source) > 4:
        return _of_array(read_tiff(source))
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
        if image.mode not in _GREY:
            return _Glance(image.height, image.width, 3)
        pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
        values = _values(np.asarray(image)) if image.mode in _DEEP else None
        return _Glance(image.height, image.width, pages, values)


def _of_array(array: np.ndarray) -> _Glance:
    return _Glance(array.shape[0], array.shape[1], array.shape[2] if array.ndim > 2 else 1, _values(array))


def _values(array: np.ndarray) -> Values | None:
    if array.dtype == np.uint8 or not array.size:
        return None
    # Pillow gives 16-bit PNGs as 32-bit numbers of the mode "I".
    whole = array.dtype.kind in "ui" and int(array.min()) >= 0 and int(array.max()) <= np.iinfo(np.uint16).max
    return Values(float(array.min()), float(array.max()), whole)


def _common(found: list[Values | None]) -> Values | None:
    """Of all images together; None where some have 8 bits, for which no other range would do."""
    deep = [one for one in found if one is not None]
    if len(deep) < len(found):
        return None
    return Values(min(one.low for one in deep), max(one.high for one in deep), all(one.whole for one in deep))
