# SPDX-License-Identifier: Apache-2.0
"""The peer of `loader.py`: the published crops by torchvision, in a Python that need not have opendino.

    python benchmarks/torchvision_recipe.py PHOTOS.parquet

It answers each line "first count" on its standard input with the seconds of processor time in which it made the views
of these rows, from encoded bytes to normalised float tensors.
"""

import argparse
import io
import sys
import time

import pyarrow.parquet as pq
import torch
from PIL import Image


def recipe(local_number: int = 8) -> list:
    """Two global and eight local chains of transforms, as the method's authors published them."""
    from torchvision import transforms as T  # pyrefly: ignore[missing-import]

    bicubic = T.InterpolationMode.BICUBIC
    jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
    end = [T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]

    def chain(size: int, scale: tuple[float, float], blur: float, solarize: float) -> T.Compose:
        steps = [T.RandomResizedCrop(size, scale=scale, interpolation=bicubic), T.RandomHorizontalFlip(0.5), jitter]
        steps += [T.RandomGrayscale(0.2), T.RandomApply([T.GaussianBlur(9, (0.1, 2.0))], p=blur)]
        steps += [T.RandomSolarize(128, p=solarize)] if solarize else []
        return T.Compose([*steps, *end])

    globals_ = [chain(224, (0.32, 1.0), 0.0, 0.0), chain(224, (0.32, 1.0), 0.9, 0.2)]
    return globals_ + [chain(98, (0.05, 0.32), 0.5, 0.0)] * local_number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="Parquet file with encoded images")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = pq.read_table(given.photos, columns=["image"])["image"].to_pylist()
    cells = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
    views = recipe()
    print("ready", flush=True)
    for line in sys.stdin:
        first, count = map(int, line.split())
        started = time.process_time()
        for cell in cells[first : first + count]:
            image = Image.open(io.BytesIO(cell)).convert("RGB")
            torch.cat([view(image).flatten() for view in views])
        print(time.process_time() - started, flush=True)


if __name__ == "__main__":
    main()
