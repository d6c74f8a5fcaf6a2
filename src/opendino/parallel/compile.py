# SPDX-License-Identifier: Apache-2.0
"""torch.compile by blocks: one compilation serves all of a shape, another the layers of heads; the rest stays eager.

What is compiled is compiled for fixed shapes. Those of a block follow from the crops; a head also sees the masked
patches, whose number is only held to a few values where `masks.pad` fills them up.
"""

import shutil
from typing import Literal

import torch
from torch import nn

from opendino.errors import ConfigError
from opendino.layers.block import Block
from opendino.layers.dino_head import DINOHead

Mode = Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs"]

_VARIANTS = 64  # shapes and drop rates of a block that are compiled before torch gives up on it


def compile_blocks(*networks: nn.Module, backend: str = "inductor", mode: Mode = "default", heads: bool = False) -> int:
    """Compile every transformer block in place; names of parameters stay.

    Args:
        *networks: that hold blocks and heads at any depth.
        backend: of torch.compile.
        mode: of torch.compile, for blocks; "reduce-overhead" replays each as one CUDA graph, and `begin_step` is then
            to be called before each step.
        heads: whether the layers of heads before the prototypes are compiled too: for batches whose masked patches
            are filled up. Not as CUDA graphs: each of their lengths would make new graphs of all that follows. A last
            block computes only the tokens that losses look at under the same two conditions.

    Returns:
        The number of blocks.

    Raises:
        ConfigError: there is no compiler for the code that would be made.
    """
    parts = [module for network in networks for module in network.modules()]
    blocks = [module for module in parts if isinstance(module, Block)]
    on_cpu = any(next(block.parameters()).device.type == "cpu" for block in blocks)
    if on_cpu and backend == "inductor" and not any(shutil.which(name) for name in ("g++", "clang++", "cl")):
        raise ConfigError("parallel.compile: there is no C++ compiler here; install g++, or leave it out")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    # Other backends than inductor know no modes.
    chosen = {"mode": mode} if mode != "default" and backend == "inductor" else {}
    for block in blocks:
        # Few numbers of masked patches are few shapes; graphs of each, or tuning for each, would still be too much.
        block.takes_wanted = heads and mode == "default"
        block.compile(dynamic=False, backend=backend, **chosen)
    for head in parts:
        if heads and isinstance(head, DINOHead):
            # The attribute hides the method; a torch.nn.Sequential by itself would be passed over by torch.compile.
            head.bottleneck = torch.compile(head.bottleneck, dynamic=False, backend=backend)
    return len(blocks)


def begin_step() -> None:
    """What CUDA graphs gave in the last step may be written over from here on.

    Without it each block would count as a step of its own, and what the one before it gave as done with. Gradients
    are such outputs: they have to be let go of before, and not in the middle of a step that has several passes.
    """
    torch.compiler.cudagraph_mark_step_begin()
