# SPDX-License-Identifier: Apache-2.0
"""Activation checkpointing, block by block: less memory for one more forward pass, or for part of one."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from opendino.layers.block import Block

Recompute = Literal["none", "selective", "full"]

_KEPT: set[Any] = {
    getattr(torch.ops.aten, name)
    for name in (
        *("mm", "addmm", "bmm", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"),
        *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    )
}
"""What costs most to compute: it is kept under "selective"."""
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # products of `layers/fast_linear.py`
    _KEPT.add(torch.ops.mkldnn._linear_pointwise)


def recompute_blocks(network: nn.Module, how: Recompute) -> int:
    """Let every transformer block forget its activations and compute them again in the backward pass, in place.

    Random numbers are drawn again as they were, so stochastic depth leaves out the same images.

    Args:
        network: that holds blocks at any depth.
        how: "none", "full", or "selective", which keeps matrix products and attention.

    Returns:
        The number of blocks that were changed.
    """
    if how == "none":
        return 0
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    for block in blocks:
        # The attribute hides the method; names of parameters stay, as a wrapping module's would not.
        block.forward = _recomputed(block.forward, options)
    return len(blocks)


def _recomputed(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    def run(*args: Any, **named: Any) -> Any:  # noqa: ANN401 (whatever a block takes)
        return checkpoint(forward, *args, **options, **named) if torch.is_grad_enabled() else forward(*args, **named)

    return run


def _policy(_context: object, operation: Any, *_: object, **__: object) -> CheckpointPolicy:  # noqa: ANN401
    kept = getattr(operation, "overloadpacket", operation) in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
