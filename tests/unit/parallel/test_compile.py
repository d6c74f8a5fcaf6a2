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


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler"):
        module.compile_blocks(VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2))
