# SPDX-License-Identifier: Apache-2.0
"""Two processes measure what one measures: features and k-NN figures."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

SCRIPT = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from opendino.eval import knn
from opendino.eval._data import LabelledConfig, extract_pair
from opendino.eval._features import FeatureConfig
from opendino.models.vision_transformer import VisionTransformer

home, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{home}/meet", rank=rank, world_size=world)
torch.manual_seed(0)
backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1)
data = LabelledConfig(str(home / "train"), str(home / "val"))
# A batch of one image a pass: the arithmetic of a row then does not depend on its neighbours.
pair = extract_pair(backbone, data, FeatureConfig(batch_size=1, device="cpu"))
torch.save({"cls": pair.train.cls, "rows": pair.train.rows}, home / f"features_{world}_{rank}.pt")
votes = knn.VoteConfig(k=(1, 3), n_per_class=(2,), tries=2)
found = knn.run(backbone, knn.KnnConfig(data, votes, FeatureConfig(batch_size=1, device="cpu")), out=home / "out")
(home / f"figures_{world}_{rank}.json").write_text(json.dumps([found.figures, found.data]))
if world > 1:
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    import torch

    rng = np.random.default_rng(0)
    for part, each in (("train", 5), ("val", 4)):
        for name in ("a", "b", "c"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(each):
                picture = Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8))
                picture.save(tmp_path / part / name / f"{i}.png")
    (tmp_path / "train" / "b" / "3.png").write_bytes(b"no picture")
    for world in (1, 2):
        commands = [[sys.executable, "-c", SCRIPT, str(tmp_path), str(rank), str(world)] for rank in range(world)]
        running = [subprocess.Popen(command) for command in commands]
        assert [process.wait(timeout=200) for process in running] == [0] * world
    alone = torch.load(tmp_path / "features_1_0.pt", weights_only=True)
    figures = json.loads((tmp_path / "figures_1_0.json").read_text())
    assert len(alone["rows"]) == 14
    for rank in (0, 1):
        together = torch.load(tmp_path / f"features_2_{rank}.pt", weights_only=True)
        assert torch.equal(together["cls"], alone["cls"])
        assert torch.equal(together["rows"], alone["rows"])
        assert json.loads((tmp_path / f"figures_2_{rank}.json").read_text()) == figures
