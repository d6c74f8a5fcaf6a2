# SPDX-License-Identifier: Apache-2.0
"""torch.compile, block by block: one compilation serves all blocks of a shape, and everything else stays eager."""

import shutil

import torch
from torch import nn

from opendino.errors import ConfigError
from opendino.layers.block import Block

_VARIANTS = 64  # shapes and drop rates of a block that are compiled before torch gives up on it


def compile_blocks(*networks: nn.Module, backend: str = "inductor") -> int:
    """Compile every transformer block in place; names of parameters stay.

    Args:
        *networks: that hold blocks at any depth.
        backend: of torch.compile.

    Returns:
        The number of blocks.

    Raises:
        ConfigError: there is no compiler for the code that would be made.
    """
    blocks = [module for network in networks for module in network.modules() if isinstance(module, Block)]
    on_cpu = any(next(block.parameters()).device.type == "cpu" for block in blocks)
    if on_cpu and backend == "inductor" and not any(shutil.which(name) for name in ("g++", "clang++", "cl")):
        raise ConfigError("parallel.compile: there is no C++ compiler here; install g++, or leave it out")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    for block in blocks:
        block.compile(dynamic=False, backend=backend)
    return len(blocks)
