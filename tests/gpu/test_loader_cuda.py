# SPDX-License-Identifier: Apache-2.0
"""Batches on a CUDA device are those of the CPU: copied as 8-bit pixels from page-locked memory, normalised there."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from opendino.data.augment import CropsConfig
from opendino.data.datasets import open_dataset
from opendino.data.loaders import LoaderConfig, pretrain_loader
from opendino.data.masking import MaskConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("photometric", ["worker", "device"])
@pytest.mark.parametrize(("workers", "thread"), [(0, "auto"), (2, "never"), (2, "auto")])
def test_batches_are_those_of_the_cpu(tmp_path, workers, thread, photometric):
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    both = []
    for device in ("cpu", "cuda"):
        loader = pretrain_loader(
            open_dataset(tmp_path), CropsConfig(global_size=32, local_size=16), MaskConfig(), 8, 4, workers=workers,
            device=device, config=LoaderConfig(photometric=photometric, thread=thread),
        )  # fmt: skip
        both.append(list(itertools.islice(loader, 5)))
        loader.close()
    for cpu, cuda in zip(*both, strict=True):
        assert cuda.global_crops.device.type == cuda.masks.device.type == cuda.ids.device.type == "cuda"
        close = {"atol": 1e-3, "rtol": 0.0} if photometric == "device" else {}
        torch.testing.assert_close(cuda.global_crops.cpu(), cpu.global_crops, **close)
        torch.testing.assert_close(cuda.local_crops.cpu(), cpu.local_crops, **close)
        assert torch.equal(cuda.masks.cpu(), cpu.masks)
        assert torch.equal(cuda.ids.cpu(), cpu.ids)
