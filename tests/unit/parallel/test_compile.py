# SPDX-License-Identifier: Apache-2.0
"""In a process of its own: torch.compile cannot look through the checks of shapes that tests put around functions."""

import shutil
import subprocess
import sys

import pytest

from opendino.errors import ConfigError
from opendino.models.vision_transformer import VisionTransformer
from opendino.parallel import compile as module

SCRIPT = """
import torch
from opendino.models.vision_transformer import VisionTransformer
from opendino.parallel.compile import compile_blocks
from opendino.parallel.recompute import recompute_blocks

def said(recompute, backend, dtype, learns):
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, init_values=0.5)
    names = list(backbone.state_dict())
    recompute_blocks(backbone, recompute)
    if backend:
        assert compile_blocks(backbone, backend=backend) == 2
    assert list(backbone.state_dict()) == names
    torch.manual_seed(1)
    crops = [torch.randn(4, 3, 8, 8)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"), torch.set_grad_enabled(learns):
        features = backbone(crops, is_training=True)
    if not learns:
        return [features[0]["x_norm_patchtokens"]]
    sum(group["x_norm_clstoken"].float().square().sum() for group in features).backward()
    grads = [p.grad.flatten() for p in backbone.parameters() if p.grad is not None]
    return features[0]["x_norm_patchtokens"].detach().float(), torch.cat(grads)

cases = (("fp32", 1e-5, "none", "inductor", False), ("bf16", 2e-2, "full", "aot_eager", True))
for dtype, near, recompute, backend, learns in cases:
    for found, value in zip(said(recompute, backend, dtype, learns), said("none", "", dtype, learns)):
        off = float((found - value).norm() / value.norm())
        assert off < near, (dtype, recompute, backend, off)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_blocks_say_the_same():
    """Values by kernels in float32; values and gradients in bfloat16 together with recomputation."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


STEPS = """
import numpy as np
import torch
from torch._dynamo.utils import counters
from opendino.data.collate import PretrainBatch
from opendino.data.masking import MaskConfig, batch_masks
from opendino.methods import dinov2
from opendino.methods.dinov2 import DINOv2
from opendino.methods.settings import DINOConfig, DINOv2Config
from opendino.models.vision_transformer import VisionTransformer
from opendino.optim.adamw import OptimConfig, adamw
from opendino.optim.param_groups import param_groups
from opendino.optim.schedules import cosine
from opendino.parallel.compile import compile_blocks
from opendino.train.loop import Run, Schedules, train_step

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 0.5}

def run(mode, padded, parts):
    torch._dynamo.reset()
    torch.manual_seed(0)
    head = DINOConfig(centering="sinkhorn_knopp", prototypes=24, hidden_dim=16, bottleneck_dim=8)
    method = DINOv2(VisionTransformer(**SHAPE, drop_path_rate=0.4), VisionTransformer(**SHAPE), DINOv2Config(dino=head))
    schedules = Schedules(*(cosine(value, value, 10) for value in (1e-3, 0.1, 1e-3, 0.9, 0.05)))
    whole = Run(method, adamw(param_groups(method.student), OptimConfig()), schedules, 10, 0, "fp32",
                torch.device("cpu"), 3.0, accumulate=parts)
    if mode:
        compile_blocks(method.student, method.teacher, backend="aot_eager", mode=mode, heads=True)
        last = [network["backbone"].blocks[-1] for network in (method.student, method.teacher)]
        assert [block.takes_wanted for block in last] == [mode == "default"] * 2
    losses, graphs = [], []
    for step in range(10):
        masks = batch_masks(8, (4, 4), MaskConfig(), np.random.default_rng(step))
        crops = torch.randn(8, 3, 16, 16), torch.randn(12, 3, 8, 8)
        batch = PretrainBatch(*crops, masks.masks, masks.indices, masks.weights, 4, torch.arange(4))
        losses.append(train_step(whole, batch.pad(8, MaskConfig()) if padded else batch)["loss"])
        graphs.append(counters["stats"]["unique_graphs"])
    return losses, graphs

plain, none = run("", False, 1)
assert not none[-1] and plain[-1] != plain[0]
dinov2.IN_BLOCKS_FROM = 1  # the head's last layer and the loss together
for mode in ("reduce-overhead", "default"):  # the last block whole, and for the tokens that losses look at
    counters.clear()
    losses, graphs = run(mode, True, 1)
    assert all(abs(one - other) < 1e-4 * other for one, other in zip(losses, plain)), (losses, plain)
    assert graphs[0] and graphs[-1] == graphs[0], graphs
counters.clear()
_, graphs = run("default", False, 1)
assert graphs[-1] > graphs[0], "without padding heads are compiled anew for each number of masked patches"
"""


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_step():
    """Two sizes of crops, stochastic depth by subset, attention by group and heads: ten steps with other masks each."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler"):
        module.compile_blocks(VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2))
