# SPDX-License-Identifier: Apache-2.0
"""Every process holds a share of each parameter (FSDP2); a block is put together when it computes.

What follows a parameter is shared out with it: gradients, the optimizer's moments, and the teacher, whose moving
average each process takes of its own share.
"""

import copy
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from opendino.distributed import world_size
from opendino.layers.block import Block

_CALLED_BY_NAME = (
    "forward_features",
    "leading_tokens",
    "chosen_tokens",
    "get_intermediate_layers",
)  # what is called besides the module itself


def shard(student: nn.ModuleDict, teacher: nn.ModuleDict, optimizer: Optimizer, precision: str) -> None:
    """Share out the parameters of a student and a teacher, block by block, heads as a whole.

    Args:
        student: its heads stay together from the forward to the backward pass.
        teacher: its heads too are shared out again after each forward pass.
        optimizer: of the student, before its first step; it is given the shares.
        precision: "bf16" sends parameters in bfloat16 on CUDA devices; gradients are added up in float32 either way.
    """
    device = next(student.parameters()).device.type
    mesh = init_device_mesh(device, (world_size(),))
    # A CPU has no layer norm whose weights are of another type than its input.
    half = torch.bfloat16 if precision == "bf16" and device == "cuda" else None
    # Inputs stay as they are: autocast decides, as in a single process, and the residual stream stays float32.
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # What is outside of the blocks is little, and tokens start in its precision.
    around = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")  # never written to
    owners = {id(parameter): (module, name) for module, name, parameter in _owned(student)}
    for networks, freed in ((student, None), (teacher, True)):
        for network in _networks(networks):
            blocks = [module for module in network.modules() if isinstance(module, Block)]
            for block in blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
            # No backward pass follows where a backbone is frozen, so it does not wait for one.
            policy_of, given_back = (around, True) if blocks else (policy, freed)
            fully_shard(network, mesh=mesh, mp_policy=policy_of, reshard_after_forward=given_back)
            for name in _CALLED_BY_NAME:
                if hasattr(network, name):
                    register_fsdp_forward_method(network, name)
    for group in optimizer.param_groups:
        # FSDP2 puts new parameters in the place of the old ones.
        group["params"] = [getattr(*owners[id(parameter)]) for parameter in group["params"]]


def skeleton(networks: nn.ModuleDict) -> nn.ModuleDict:
    """The networks without their numbers, to be filled by `gather`; to be made before they are shared out."""
    return copy.deepcopy(networks).to("meta")


@torch.no_grad()
def gather(networks: nn.ModuleDict, empty: nn.ModuleDict) -> nn.ModuleDict:
    """A plain copy of networks that are shared out; every process calls it and gets one.

    Args:
        networks: shared out.
        empty: their skeleton.
    """
    state = {name: whole(value) for name, value in networks.state_dict().items()}
    device = next(iter(state.values())).device
    copied = copy.deepcopy(empty).to_empty(device=device)
    copied.load_state_dict(state)
    return copied.requires_grad_(False)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, of which each process may hold a share; every process calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _networks(networks: nn.ModuleDict) -> Iterator[nn.Module]:
    """What is called: the values of a dictionary, and those of dictionaries in it, as far as they have parameters."""
    for network in networks.values():
        if isinstance(network, nn.ModuleDict):
            yield from _networks(network)
        elif next(network.parameters(), None) is not None:
            yield network


def _owned(networks: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for module in networks.modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield module, name, parameter
