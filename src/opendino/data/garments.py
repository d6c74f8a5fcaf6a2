# SPDX-License-Identifier: Apache-2.0
"""The shipped garments, each placed on a larger black canvas: real, small, labelled, and hard for raw pixels.

Fashion-MNIST centres every garment in 28 x 28 pixels, so comparing pixels already tells most classes apart. Here a
garment gets a random place, size and brightness, in the tradition of translated MNIST; two shirts then share few
pixels, and features have to be learned. Placement is a pure function of the part and the row: every run sees the same
images. Read next: `assets/garments/README.md` for the origin, `train/demo.py` for the use.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from opendino.data.datasets import DecodeOptions
from opendino.data.datasets.parquet import ParquetDataset
from opendino.errors import ConfigError, DataError
from opendino.files import write_whole

HOME = Path(__file__).parents[1] / "assets" / "garments"
"""Folder of the shipped files: `train.parquet`, `test.parquet`, `LICENSE`, `README.md`."""

PARTS = ("train", "test")


@dataclass(frozen=True)
class PlacementConfig:
    """How a garment is placed.

    Attributes:
        canvas: side of the canvas, pixels.
        size: smallest and largest side of the garment's square, pixels, at most the canvas.
        brightness: smallest and largest factor on its grey values, 0 to 1.
    """

    canvas: int = 40
    size: tuple[int, int] = (22, 34)
    brightness: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        if not 1 <= self.size[0] <= self.size[1] <= self.canvas:
            raise ConfigError(
                f"garments.size = {list(self.size)} does not fit a canvas of {self.canvas} pixels; use two rising "
                f"numbers of 1 to {self.canvas}"
            )
        if not 0 < self.brightness[0] <= self.brightness[1] <= 1:
            raise ConfigError(
                f"garments.brightness = {list(self.brightness)} is no range of factors; use two rising numbers above "
                "0, at most 1"
            )


def place(
    garment: UInt8[np.ndarray, "28 28"], part: str, row: int, config: PlacementConfig = PlacementConfig()
) -> UInt8[np.ndarray, "canvas canvas"]:
    """One garment on its canvas.

    Args:
        garment: grey values, 0 is background.
        part: "train" or "test"; with `row` it decides place, size and brightness.
        row: position in the part.
        config: ranges of what is drawn.
    """
    rng = np.random.default_rng([PARTS.index(part), row])
    side = int(rng.integers(config.size[0], config.size[1] + 1))
    factor = rng.uniform(*config.brightness)
    top, left = rng.integers(0, config.canvas - side + 1, 2)
    scaled = np.asarray(Image.fromarray(garment).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    canvas = np.zeros((config.canvas, config.canvas), dtype=np.uint8)
    canvas[top : top + side, left : left + side] = np.rint(scaled * factor).astype(np.uint8)
    return canvas


def write(folder: Path, config: PlacementConfig = PlacementConfig(), limit: int | None = None) -> dict[str, Path]:
    """Write both parts as Parquet files of PNG images that `open_dataset` opens.

    Args:
        folder: is made; files of the same name are replaced.
        config: how garments are placed.
        limit: first so many rows of each part; None takes all.

    Returns:
        Part to file. Columns: id, image, label, label_name.

    Raises:
        DataError: a file cannot be written.
    """
    return {part: _write(folder / f"{part}.parquet", part, config, limit) for part in PARTS}


def _write(path: Path, part: str, config: PlacementConfig, limit: int | None) -> Path:
    source = HOME / f"{part}.parquet"
    shipped = ParquetDataset(source, DecodeOptions(channels=1))
    table = pq.read_table(source).slice(0, limit)
    images = [_png(place(np.asarray(shipped.image(row)), part, row, config)) for row in range(len(table))]
    table = table.set_column(table.schema.get_field_index("image"), "image", pa.array(images, pa.binary()))
    return write_whole(path, lambda partial: pq.write_table(table, partial), error=DataError)


def _png(pixels: UInt8[np.ndarray, "h w"]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
