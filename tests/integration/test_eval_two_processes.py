# SPDX-License-Identifier: Apache-2.0
"""Two processes measure what one measures: features, k-NN figures, and what heads learn on patches."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from opendino.eval import depth, knn, segment
from opendino.eval._data import LabelledConfig, extract_pair
from opendino.eval._features import FeatureConfig
from opendino.eval._masked import MaskedConfig
from opendino.eval._segmenter import HeadConfig
from opendino.models.vision_transformer import VisionTransformer

home, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{home}/meet", rank=rank, world_size=world)
torch.manual_seed(0)
backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1)
data = LabelledConfig(str(home / "train"), str(home / "val"))
# One image a pass and no fast copy: the arithmetic of a row then does not depend on its neighbours.
pair = extract_pair(backbone, data, FeatureConfig(batch_size=1, optimize=False, device="cpu"))
torch.save({"cls": pair.train.cls, "rows": pair.train.rows}, home / f"features_{world}_{rank}.pt")
votes = knn.VoteConfig(k=(1, 3), n_per_class=(2,), tries=2)
features = FeatureConfig(batch_size=1, optimize=False, device="cpu")
found = knn.run(backbone, knn.KnnConfig(data, votes, features), out=home / "out")
scenes = str(home / "scenes")
one = FeatureConfig(device="cpu", size=16)
masked = segment.SegmentConfig(
    MaskedConfig(scenes, scenes), HeadConfig(crop=16, stride=8, short=0, iterations=6, batch_size=2, lr=0.02), one
)
deep = depth.DepthConfig(
    depth.DepthDataConfig(scenes, scenes, max_depth=6.0),
    depth.DepthHeadConfig(head="lin1", iterations=6, batch_size=2),
    one,
)
dense = [segment.run(backbone, masked).figures, depth.run(backbone, deep).figures]
dense = [{name: round(value, 6) for name, value in figures.items()} for figures in dense]
(home / f"figures_{world}_{rank}.json").write_text(json.dumps([found.figures, found.data, *dense]))
if world > 1:
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(labelled_parts, scenes):
    tmp_path = labelled_parts
    import torch

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
