# SPDX-License-Identifier: Apache-2.0
"""What an adaptation starts from: a run with its student, teacher, heads and centres, or weights without heads.

Read next: `adapt_plan.py`, which settings follow from it, and `adapt.py`, which puts it into the networks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from opendino.checkpoint import store
from opendino.checkpoint._architecture import arguments_of, assemble
from opendino.checkpoint.store import check_fit
from opendino.errors import CheckpointError, ConfigError
from opendino.methods.dinov2 import DINOv2
from opendino.models.refit import ChannelRule, refit
from opendino.models.vision_transformer import VisionTransformer
from opendino.train.teacher import HEADS, digest, open_teacher

Kind = Literal["auto", "checkpoint", "weights"]


@dataclass(frozen=True)
class Start:
    """What an adaptation starts from, on the CPU.

    Attributes:
        source: its name or absolute path.
        kind: "checkpoint" with heads, "weights" without.
        backbone: the teacher's.
        student: the student's; the teacher's once more where there is no other.
        heads: of student and teacher, by the names of their tensors; empty without.
        centers: running centres of the targets, by their names in a run's state.
        settings: of the run that it comes from, dotted; empty for others.
        sha256: of the teacher's names and weights, heads and centres included where there are any.
        step: of the checkpoint; 0 for weights.
    """

    source: str
    kind: Literal["checkpoint", "weights"]
    backbone: VisionTransformer
    student: VisionTransformer
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    centers: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""
    step: int = 0

    def put_into(self, method: DINOv2, channels: ChannelRule) -> None:
        """Give a method's networks these weights, fitted to its images; without heads, its own stay as drawn.

        Args:
            method: freshly built, of the same width and depth.
            channels: how the patch embedding is fitted to other channels.

        Raises:
            ConfigError: its heads or its targets are others than those of the checkpoint.
            ModelError: the rule cannot make so many channels.
        """
        for network, backbone in (("student", self.student), ("teacher", self.backbone)):
            own = method.get_submodule(f"{network}.backbone")
            assert isinstance(own, VisionTransformer)
            own.load_state_dict(fitted(backbone, own, channels).state_dict())
            if self.kind == "checkpoint":
                self._put_heads(network, method)
        if self.kind == "weights":
            method.reset_teacher()
        present = method.state_dict()
        fitting = {name: center for name, center in self.centers.items() if name in present}
        method.load_state_dict(fitting, strict=False)

    def _put_heads(self, network: str, method: DINOv2) -> None:
        parts = {"student": method.student, "teacher": method.teacher}[network]
        wanted = {name: tensor for name, tensor in parts.state_dict().items() if name.startswith(HEADS)}
        try:
            check_fit(self.source, self.heads[network], wanted)
        except CheckpointError as error:
            raise ConfigError(
                f"the heads of this adaptation are others than those of {error}; leave dino.* and ibot.* as that run "
                "has them, or build new ones by adapt.start=weights adapt.head_steps=0.1"
            ) from None
        parts.load_state_dict(self.heads[network], strict=False)


def fitted(backbone: VisionTransformer, wanted: VisionTransformer, channels: ChannelRule) -> VisionTransformer:
    """A backbone with the position table and the channels of another one.

    Raises:
        ModelError: the rule cannot make so many channels.
    """
    size = (wanted.grid[0] * wanted.patch_size, wanted.grid[1] * wanted.patch_size)
    return refit(backbone, size if wanted.grid != backbone.grid else None, wanted.input_spec, channels)


def open_start(source: str, kind: Kind = "auto") -> Start:
    """Open what an adaptation starts from.

    Args:
        source: a run folder, whose newest checkpoint holds heads; or anything that `opendino.load` takes.
        kind: "checkpoint" asks for the former, "weights" takes the backbone alone, "auto" what there is.

    Raises:
        ConfigError: nothing is named, or there is no checkpoint where one is asked for.
        CheckpointError: it cannot be read.
    """
    if not source:
        raise ConfigError(
            "init is missing: give init=RUN, a run folder, or init=WEIGHTS, anything that opendino.load takes, such as "
            "facebook/dinov2-base"
        )
    return _open(source, kind)


def forget_start() -> None:
    """Let go of the last start that was opened, once its weights are in the networks."""
    _open.cache_clear()


@lru_cache(maxsize=1)
def _open(source: str, kind: Kind) -> Start:
    """A plan and the run that follows it open the same start."""
    teacher, folder = open_teacher(source), Path(source)
    name = str(folder.resolve()) if folder.exists() else source
    newest = store.latest(folder) if (folder / "run.json").is_file() else None
    if kind == "checkpoint" and newest is None:
        raise ConfigError(f"init = {source} is no run with a checkpoint; give a run folder, or adapt.start=weights")
    if kind == "weights" or newest is None or not teacher.has_heads:
        backbone = teacher.backbone
        sha256 = digest(backbone.state_dict())
        return Start(name, "weights", backbone, backbone, settings=teacher.settings, sha256=sha256)
    checkpoint = store.load(newest)
    of_student = checkpoint.tensors["student"]
    heads = {
        network: {key: tensor for key, tensor in checkpoint.tensors[network].items() if key.startswith(HEADS)}
        for network in ("student", "teacher")
    }
    backbone = teacher.backbone
    own = {key.removeprefix("backbone."): t for key, t in of_student.items() if key.startswith("backbone.")}
    student = backbone
    if own.keys() == backbone.state_dict().keys():  # a student with LoRA has other names; its teacher has it merged
        student = assemble(source, arguments_of(backbone), own)
        student.input_spec = backbone.input_spec
    return Start(
        name, "checkpoint", backbone, student, heads, teacher.centers, teacher.settings, teacher.sha256, checkpoint.step
    )
