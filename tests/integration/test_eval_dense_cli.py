# SPDX-License-Identifier: Apache-2.0
"""Pixel-level protocols on real images, from the command line."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from opendino.checkpoint.weights import save_weights
from opendino.cli import eval as verb
from opendino.models.vision_transformer import VisionTransformer


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("model")
    save_weights(VisionTransformer(img_size=112, patch_size=14, embed_dim=64, depth=4, num_heads=1), home / "w")
    return home / "w"


def figures(folder, protocol):
    (file,) = folder.glob(f"{protocol}-*.json")
    return json.loads(file.read_text())["figures"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "knn"])
def test_street_scenes(real_data, untrained, tmp_path, head):
    """Colour and place say something of the class: more than the commonest class, with an untrained backbone."""
    for part, rows in (("train", 8), ("val", 2)):
        table = pq.read_table(real_data / f"camvid-{part}.parquet")
        step = len(table) // rows
        pq.write_table(table.take(list(range(0, rows * step, step))), tmp_path / f"{part}.parquet")
    words = [f"data.train={tmp_path / 'train.parquet'}", f"data.val={tmp_path / 'val.parquet'}", "data.ignore=[11]"]
    small = ["segment.crop=112", "segment.stride=112", "segment.short=112", "segment.iterations=20", "segment.lr=0.01",
             "segment.batch_size=4", "segment.patches=800", "features.device=cpu"]  # fmt: skip
    assert verb.main(["segment", str(untrained), *words, *small, f"segment.head={head}", f"out={tmp_path / 'o'}"]) == 0
    found = figures(tmp_path / "o", "segment")
    assert found["aAcc"] > 35  # building, the commonest class, covers about a quarter
    assert found["mIoU"] > 6
