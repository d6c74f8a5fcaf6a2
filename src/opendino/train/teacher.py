# SPDX-License-Identifier: Apache-2.0
"""Opens the frozen teacher of a distillation: a run with its heads, or any backbone; read `distill.py` next."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opendino.checkpoint import store
from opendino.checkpoint._reading import TORCH_FILES, read
from opendino.checkpoint.convert.official import flat
from opendino.checkpoint.hub import load_backbone
from opendino.errors import CheckpointError
from opendino.layers.dino_head import DINOHead
from opendino.models.vision_transformer import VisionTransformer
from opendino.train import run_folder

HEADS = ("dino_head", "ibot_head")
CENTERS = ("dino_loss.center", "ibot_patch_loss.center")
_LAYER = re.compile(r"mlp\.(\d+\.)?weight")


class Teacher(NamedTuple):
    """A frozen network and where it comes from.

    Attributes:
        network: "backbone", and "dino_head" and "ibot_head" as far as there are any.
        centers: running centres of its targets, by their names in a run's state.
        settings: of the run that it comes from, dotted; empty for others.
        sha256: of its names and weights, wherever they are kept.
    """

    network: nn.ModuleDict
    centers: dict[str, Tensor]
    settings: dict[str, Any]
    sha256: str

    @property
    def backbone(self) -> VisionTransformer:
        """Its backbone."""
        backbone = self.network["backbone"]
        assert isinstance(backbone, VisionTransformer)
        return backbone

    @property
    def has_heads(self) -> bool:
        """Whether it can say prototype probabilities of images."""
        return "dino_head" in self.network


def open_teacher(source: str) -> Teacher:
    """Open a teacher; its weights are float32 on the CPU.

    Args:
        source: a run folder, whose newest checkpoint holds heads; a training checkpoint of the official code
            (`teacher_checkpoint.pth`), which holds them too; or anything else that `opendino.load` takes, without.

    Raises:
        CheckpointError: it cannot be read.
        ConversionError: it is no DINOv2 model, or its heads are none.
    """
    backbone, folder = load_backbone(source), Path(source)
    state: Mapping[str, Tensor] = {}
    settings: dict[str, Any] = {}
    if (folder / "run.json").is_file():
        stored, newest = run_folder.read(folder), store.latest(folder)
        settings = stored.settings if stored is not None else {}
        if newest is not None:
            parts = store.load(newest).tensors
            state = {**parts.get("targets", {}), **parts["teacher"]}
            # `weights/` of a run that is under way may be newer or older than the checkpoint.
            backbone.load_state_dict(_below("backbone", state))
    elif folder.is_file() and folder.suffix in TORCH_FILES:
        found = flat(source, read(folder))
        state = {name.removeprefix("teacher."): tensor for name, tensor in found.items()}
    network = nn.ModuleDict({"backbone": backbone})
    for name in HEADS:
        tensors = _below(name, state)
        if tensors:
            network[name] = head_of(tensors, f"{source}: {name}")
    network.requires_grad_(False).eval()
    centers = {name: state[name].float() for name in CENTERS if name in state}
    return Teacher(network, centers, settings, digest(network.state_dict() | centers))


def head_of(tensors: Mapping[str, Tensor], where: str) -> DINOHead:
    """A projection head of its weights, whose shapes say how it is built.

    Args:
        tensors: by their names in the head.
        where: whose they are, for the message.

    Raises:
        CheckpointError: they are not those of a head.
    """
    layers = sorted(name for name in tensors if _LAYER.fullmatch(name))
    prototypes = tensors.get("last_layer.weight_v")
    try:
        if prototypes is None or not layers:
            raise KeyError("mlp weights and last_layer.weight_v")
        first = tensors[layers[0]]
        head = DINOHead(first.shape[1], len(prototypes), first.shape[0], prototypes.shape[1], len(layers))
        head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (KeyError, RuntimeError) as error:
        fault = " ".join(str(error).split())
        raise CheckpointError(f"{where}: is no projection head ({fault}); give another teacher") from None
    return head


def sizes_of(head: DINOHead) -> dict[str, int]:
    """Settings that make a head of the same shape, but for its prototypes."""
    layers = [module for module in head.mlp.modules() if isinstance(module, nn.Linear)]
    bottleneck = head.last_layer.weight_v.shape[1]
    return {"hidden_dim": layers[0].out_features, "bottleneck_dim": bottleneck, "nlayers": len(layers)}


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and float32 values, in the order of names."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return found.hexdigest()


def _below(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
