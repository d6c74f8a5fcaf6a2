# SPDX-License-Identifier: Apache-2.0
"""Whether the operations of a layer are followed one by one, so that it has to be written in PyTorch's own."""

import torch
from torch.autograd import forward_ad


def is_followed() -> bool:
    """Whether operations are written into a graph that others run, or transformed (`torch.func`, forward gradients).

    An `autograd.Function` of ours is for none of them: a layer that has one takes its plain formula there.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return True
    # Neither has a public name; in a PyTorch without them a layer refuses transformations, and is right elsewhere.
    transformed = getattr(torch._C, "_are_functorch_transforms_active", bool)()
    return transformed or getattr(forward_ad, "_current_level", -1) >= 0
