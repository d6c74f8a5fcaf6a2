# SPDX-License-Identifier: Apache-2.0
"""What a run is made of besides its step number: weights, centres and the optimizer's moments, by name.

Randomness has no state here: every random number is keyed by the seed and a counter (`seed_step`, `data/samplers.py`).
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer

from opendino.checkpoint._saved import Saved
from opendino.checkpoint.store import Opened, check_fit
from opendino.methods.method import Method

_NETWORKS = ("student", "teacher")


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch's generators for one step of one process, so that a resumed run draws what it would have drawn."""
    key = hashlib.blake2b(f"opendino {seed} {step} {rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(key, "little") >> 1)


def collect(method: Method, optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """Every tensor of a run, in the parts that a checkpoint keeps in files of their own.

    "student" and "teacher" hold the networks, "targets" what else the method remembers (centres), "optimizer" the
    moments under `exp_avg/<parameter>` and so on.
    """
    everything = method.state_dict()
    parts: dict[str, dict[str, Tensor]] = {network: {} for network in (*_NETWORKS, "targets")}
    for name, tensor in everything.items():
        network, _, inner = name.partition(".")
        if network in _NETWORKS:
            parts[network][inner] = tensor
        else:
            parts["targets"][name] = tensor
    parts["optimizer"] = {
        f"{quantity}/{name}": value
        for name, parameter in _named(optimizer)
        for quantity, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
    return {part: tensors for part, tensors in parts.items() if tensors}


def own_share(parts: dict[str, dict[str, Tensor]], number: int) -> dict[str, dict[str, Tensor]]:
    """What one process writes of tensors that several hold in shares: its shares, and on process 0 all else."""
    own = {
        part: {
            name: tensor.to_local() if isinstance(tensor, DTensor) else tensor
            for name, tensor in tensors.items()
            if number == 0 or isinstance(tensor, DTensor)
        }
        for part, tensors in parts.items()
    }
    return {part: tensors for part, tensors in own.items() if tensors or number == 0}


def copied(parts: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The tensors as they are now, in the memory of the CPU."""
    return {
        part: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        for part, tensors in parts.items()
    }


def restore(method: Method, optimizer: Optimizer, checkpoint: Opened) -> None:
    """Put a checkpoint's tensors back, in place; a process reads no more than its share of what is shared out.

    Raises:
        CheckpointError: names or shapes differ from those of the run; nothing has been changed then.
    """
    wanted = collect(method, optimizer)
    for part in (*_NETWORKS, "targets"):
        where = f"{checkpoint.folder}/{part}.safetensors"
        check_fit(where, checkpoint.tensors.get(part, {}), wanted.get(part, {}))
    moments = checkpoint.tensors.get("optimizer", {})
    _check_moments(optimizer, moments, checkpoint)
    saved = {f"{network}.{name}": t for network in _NETWORKS for name, t in checkpoint.tensors[network].items()}
    saved |= checkpoint.tensors.get("targets", {})
    like = method.state_dict()
    method.load_state_dict({name: _read_like(each, like.get(name)) for name, each in saved.items()}, strict=True)
    _restore_moments(optimizer, moments)


def _check_moments(optimizer: Optimizer, moments: dict[str, Saved], checkpoint: Opened) -> None:
    parameters = dict(_named(optimizer))
    like = {
        key: parameters[key.partition("/")[2]] if saved.ndim else saved
        for key, saved in moments.items()
        if key.partition("/")[2] in parameters
    }
    check_fit(f"{checkpoint.folder}/optimizer.safetensors", moments, like)


def _restore_moments(optimizer: Optimizer, moments: dict[str, Saved]) -> None:
    state: dict[str, dict[str, Tensor]] = {}
    parameters = dict(_named(optimizer))
    for key, saved in moments.items():
        quantity, _, name = key.partition("/")
        state.setdefault(name, {})[quantity] = _read_like(saved, parameters[name] if saved.ndim else None)
    # By way of the optimizer's own loading, which knows which tensors belong on the device.
    numbered = {number: state[name] for number, (name, _) in enumerate(_named(optimizer)) if name in state}
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})


def _read_like(saved: Saved, like: Tensor | None) -> Tensor:
    """A tensor of a checkpoint; where `like` is held in shares, this process's share, and no other row is read."""
    if not isinstance(like, DTensor):
        return saved.rows()
    mesh = like.device_mesh
    if like.placements != (Shard(0),):
        # Without a source all processes have the whole, and nothing is sent.
        return distribute_tensor(saved.rows(), mesh, like.placements, src_data_rank=None)
    own = like.to_local()
    first = mesh.get_local_rank() * -(-like.shape[0] // mesh.size())  # as torch.chunk cuts
    rows = saved.rows(first, first + len(own)).to(own.device)
    return DTensor.from_local(rows, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def _named(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Names and parameters in the optimizer's order; it was given pairs, see `optim/param_groups.py`."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)
