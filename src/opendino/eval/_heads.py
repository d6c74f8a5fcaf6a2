# SPDX-License-Identifier: Apache-2.0
"""The heads of a run's newest checkpoint, beside the backbone that its weights hold; `health.py` measures them."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opendino.checkpoint import store
from opendino.config import read_yaml
from opendino.errors import ConfigError
from opendino.eval.adapters import Backbone
from opendino.layers.dino_head import DINOHead
from opendino.losses.dino import STUDENT_TEMP

_ROWS = 1024
_PUBLISHED_TEMP = (0.04, 0.07)


@dataclass(frozen=True)
class Heads:
    """What maps features to prototypes.

    Attributes:
        teacher_head: of the images.
        student_head: likewise.
        student: the student's backbone.
        center: running mean of the teacher's logits, 0 without centering.
        temp: the teacher's temperature at the end of the run.
    """

    teacher_head: DINOHead
    student_head: DINOHead
    student: Backbone
    center: Float[Tensor, "one K"]
    temp: float

    def teacher_probabilities(self, cls: Float[Tensor, "n D"]) -> Float[Tensor, "n K"]:
        """Over the prototypes, as `methods/dinov2.py` has them in looks at a run."""
        return torch.softmax((_logits(self.teacher_head, cls) - self.center) / self.temp, dim=-1)

    def student_logarithms(self, cls: Float[Tensor, "n D"]) -> Float[Tensor, "n K"]:
        """Logarithms of the student's probabilities."""
        return torch.log_softmax(_logits(self.student_head, cls) / STUDENT_TEMP, dim=-1)


def read_heads(run: Path, backbone: Backbone) -> Heads | None:
    """Heads of the newest checkpoint of a run; None where its method has none for images.

    Args:
        run: its folder.
        backbone: the run's teacher.

    Raises:
        ConfigError: there is no such run or checkpoint, or the backbone is not that of the checkpoint.
        CheckpointError: the checkpoint cannot be read.
    """
    newest = store.latest(run)
    if newest is None or not (run / "config.yaml").is_file():
        raise ConfigError(f"heads = {run}: is no run with a checkpoint; name the folder of the run")
    tensors = store.load(newest).tensors
    networks = {who: tensors.get(who, {}) for who in ("teacher", "student")}
    if not all("dino_head.last_layer.weight_v" in part for part in networks.values()):
        return None
    own = backbone.state_dict()
    if _part(networks["teacher"], "backbone.").keys() != own.keys() or any(
        not torch.equal(value, own[name].cpu()) for name, value in _part(networks["teacher"], "backbone.").items()
    ):
        raise ConfigError(f"heads = {run}: the model is not the teacher of {newest.name}; name the run that it is of")
    student = cast("Backbone", copy.deepcopy(backbone))
    student.load_state_dict(_part(networks["student"], "backbone."))
    heads = {who: _head(_part(part, "dino_head.")) for who, part in networks.items()}
    temps = read_yaml(run / "config.yaml").get("teacher", {}).get("temp", _PUBLISHED_TEMP)
    nothing = torch.zeros(1, heads["teacher"].out_dim)
    center = tensors.get("targets", {}).get("dino_loss.center", nothing)
    return Heads(heads["teacher"], heads["student"], student, center.reshape(1, -1), float(temps[-1]))


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _head(state: dict[str, Tensor]) -> DINOHead:
    """A head of the shape of its weights."""
    layers = [value for name, value in state.items() if name.startswith("mlp.") and name.endswith("weight")]
    prototypes, bottleneck = state["last_layer.weight_v"].shape
    head = DINOHead(layers[0].shape[1], prototypes, layers[0].shape[0], bottleneck, len(layers))
    head.load_state_dict(state)
    return head.eval().requires_grad_(False)


@torch.no_grad()
def _logits(head: nn.Module, cls: Float[Tensor, "n D"]) -> Float[Tensor, "n K"]:
    return torch.cat([head(part).float() for part in cls.split(_ROWS)])
