# SPDX-License-Identifier: Apache-2.0
"""Make the labelled images that the package ships, `src/opendino/assets/garments`, from Fashion-MNIST's four files.

    python examples/make_garments.py                                  after: apt install dataset-fashion-mnist
    python examples/make_garments.py FOLDER_OF_IDX_GZ OUTPUT_FOLDER

The first 1,000 training and the first 200 test images of each class, in the order of the files; every pixel is kept.
"""

import argparse
import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SOURCE = Path("/usr/share/datasets/fashion-mnist")
OUTPUT = Path(__file__).parents[1] / "src/opendino/assets/garments"
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PARTS = {"train": ("train", 1000), "test": ("t10k", 200)}


def read_idx(path: Path) -> np.ndarray:
    """An IDX file: two zero bytes, the type (8: uint8), the number of axes, their lengths, then the values."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def first_of_each_class(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Positions in increasing order."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(len(CLASSES))]))


def encode(pixels: np.ndarray) -> bytes:
    """Lossless WebP: an eighth smaller than PNG for these images."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE, help=f"folder of the four files; {SOURCE}")
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT, help="folder to write into")
    given = parser.parse_args()
    make(given.source, given.output)


def make(source: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for part, (prefix, per_class) in PARTS.items():
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        rows = first_of_each_class(labels, per_class)
        table = pa.table(
            {
                "id": [f"{part}-{row:05d}" for row in rows],
                "image": pa.array([encode(images[row]) for row in rows], pa.binary()),
                "label": pa.array(labels[rows], pa.uint8()),
                "label_name": [CLASSES[label] for label in labels[rows]],
            }
        )
        path = output / f"{part}.parquet"
        pq.write_table(table, path, compression="zstd", use_dictionary=["label_name"])
        print(f"{path}: {len(rows)} images, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
