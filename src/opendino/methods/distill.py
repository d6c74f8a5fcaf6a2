# SPDX-License-Identifier: Apache-2.0
"""Distillation: a student learns what a frozen guide says; read `guide.py` first, `train/distill.py` next.

| class            | the guide has | the student learns                                                               |
|------------------|---------------|----------------------------------------------------------------------------------|
| `Distill`        | heads         | its prototype probabilities: the losses of DINOv2, as published                  |
| `FeatureDistill` | a backbone    | its CLS and patch tokens, through small projectors                               |
| `Together`       | either        | several students of one guide, whose pass over the images they share             |

The teacher of these methods, of which weights and figures are taken, is an average of the student.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol, cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from opendino.data.collate import PretrainBatch
from opendino.distributed import gather_rows
from opendino.errors import ModelError
from opendino.losses.distill import FeatureLoss, feature_loss
from opendino.losses.koleo import koleo_loss
from opendino.methods.dinov2 import DINOv2, StudentViews, Targets
from opendino.methods.guide import Guide, Guided, Said, on_grid
from opendino.methods.method import StepOutput
from opendino.methods.settings import DINOv2Config
from opendino.models.outputs import FeatureDict
from opendino.models.vision_transformer import VisionTransformer

TERMS = ("dino_local", "dino_global", "ibot", "koleo")
"""What the loss of each student is made of."""


class Distill(Guided, DINOv2):
    """The published way: the losses of DINOv2 with a frozen teacher's prototype probabilities as targets.

    No crop is masked, so the patch term takes all patches of both global crops, each crop's patches with equal weight;
    it therefore starts near ln K, twice that of pretraining.

    Args:
        student_backbone: to be trained; without stochastic depth, as published.
        average_backbone: the same shape; becomes the average.
        guide: with the heads that the terms need and as many prototypes.
        config: weights, the student's heads and schedules.

    Raises:
        ModelError: the guide lacks a head, or has another number of prototypes.

    Source: Oquab et al. 2023, section 5, "Knowledge distillation"; all patches by word of an author (official
        repository, issue 176). No code was published.
    Differs: patch grids may differ, the guide's tokens are then resized before its head; the running centre of a guide
        that was trained with one is where its run left it.
    """

    def __init__(
        self,
        student_backbone: VisionTransformer,
        average_backbone: VisionTransformer,
        guide: Guide,
        config: DINOv2Config | None = None,
    ) -> None:
        super().__init__(student_backbone, average_backbone, config)
        self.guide_by(guide)
        _check_heads(self.student, guide)
        for name, center in guide.centers.items():
            own = dict(self.named_buffers()).get(name)
            if own is not None and own.shape == center.shape:
                own.copy_(center)

    def forward(self, batch: PretrainBatch, teacher_temp: float) -> StepOutput:
        """Loss of a batch; its masks are not read."""
        return self.learn(batch, self.guide(batch), teacher_temp)

    def learn(self, batch: PretrainBatch, said: Said, teacher_temp: float) -> StepOutput:
        """Loss of a batch of which the guide has been asked already."""
        targets = self.targets_of(said, batch, teacher_temp)
        return self.loss(self.student_views(batch), targets, batch)

    @torch.no_grad()
    def targets(self, batch: PretrainBatch, teacher_temp: float) -> Targets:
        """What the guide says of the global crops and of all their patches."""
        return self.targets_of(self.guide(batch), batch, teacher_temp)

    @torch.no_grad()
    def targets_of(self, said: Said, batch: PretrainBatch, teacher_temp: float) -> Targets:
        """Probabilities of what the guide says, centred or evened out as the settings ask."""
        of_crops, of_patches = self._logits_of(said, batch)
        crops = None if of_crops is None else self._to_targets("dino_loss", of_crops, teacher_temp)
        return Targets(
            crops=None if crops is None else crops.unflatten(0, (-1, batch.images)),
            patches=None if of_patches is None else self._to_targets("ibot_patch_loss", of_patches, teacher_temp),
        )

    @torch.no_grad()
    def teacher_logits(
        self, batch: PretrainBatch
    ) -> tuple[Float[Tensor, "rows K"] | None, Float[Tensor, "M Kp"] | None]:
        """The guide's prototype logits of the global crops and of all their patches."""
        return self._logits_of(self.guide(batch), batch)

    def _logits_of(
        self, said: Said, batch: PretrainBatch
    ) -> tuple[Float[Tensor, "rows K"] | None, Float[Tensor, "M Kp"] | None]:
        patches = on_grid(said.patches, grid_of(self.student, batch)).flatten(0, 1)
        return self._logits(self.guide.network, said.cls, patches)

    def _real(self, batch: PretrainBatch) -> None:
        """All patches are."""

    def student_views(self, batch: PretrainBatch) -> StudentViews:
        """What the student says of unmasked crops, in one packed pass of the backbone."""
        return super().student_views(all_patches(self.student, batch))

    def terms(self, views: StudentViews, targets: Targets, batch: PretrainBatch) -> dict[str, Tensor]:
        """The weighted terms but KoLeo, over all patches."""
        return super().terms(views, targets, all_patches(self.student, batch))


class FeatureDistill(Guided):
    """Features as targets, where the guide has no heads: each view's CLS and patch tokens, through projectors.

    The CLS term compares every global crop with what the guide says of the same crop, and local crops, where there are
    any, with what it says of both global ones; all pairs weigh the same.

    Args:
        student_backbone: to be trained.
        average_backbone: the same shape; becomes the average.
        guide: a backbone will do.
        config: weights of the terms: `dino` of CLS, `ibot` of patches, `koleo` of spreading.
        kind: distance of features.
        layers: linear layers of each projector, 1 or 2; they are thrown away in the end.

    Raises:
        ModelError: neither CLS nor patches have a weight.

    Source: Zhang et al. 2025 (Proteus): CLS and patch tokens of a foundation model suffice, without its heads;
        Ranzinger et al. 2024 (AM-RADIO): two-layer projectors for each kind of token, resized patch grids.
    Differs: Proteus adds masked patches and AM-RADIO several teachers; neither is here.
    """

    def __init__(
        self,
        student_backbone: VisionTransformer,
        average_backbone: VisionTransformer,
        guide: Guide,
        config: DINOv2Config | None = None,
        kind: FeatureLoss = "mixed",
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.config, self.kind = config or DINOv2Config(), kind
        if not (self.config.dino.loss_weight or self.config.ibot.loss_weight):
            raise ModelError(
                "dino.loss_weight and ibot.loss_weight are both 0: no feature is compared; set one above 0"
            )
        self.guide_by(guide)
        self.student = self._network(student_backbone, layers)
        self.teacher = self._network(average_backbone, layers)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.train()

    def _network(self, backbone: VisionTransformer, layers: int) -> nn.ModuleDict:
        network = nn.ModuleDict({"backbone": backbone})
        width = self.guide.backbone.embed_dim
        for name, config in (("cls_projector", self.config.dino), ("patch_projector", self.config.ibot)):
            if config.loss_weight:
                network[name] = projector(backbone.embed_dim, width, layers)
        return network

    def forward(self, batch: PretrainBatch, teacher_temp: float) -> StepOutput:
        """Loss of a batch; its masks are not read, and features have no temperature."""
        return self.learn(batch, self.guide(batch), teacher_temp)

    def learn(self, batch: PretrainBatch, said: Said, teacher_temp: float) -> StepOutput:  # noqa: ARG002 (as others)
        """Loss of a batch of which the guide has been asked already."""
        terms, cls = self._terms(batch, said)
        if self.config.koleo.loss_weight:
            terms["koleo"] = self._koleo(cls)
        loss = sum(terms.values(), start=torch.zeros((), device=cls.device))
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()})

    def passes(self, batch: PretrainBatch, teacher_temp: float, parts: int) -> Iterator[StepOutput]:
        """As `Method.passes`; KoLeo looks for neighbours in the whole batch, by the way of `DINOv2.passes`."""
        if parts == 1 or not self.config.koleo.loss_weight:
            yield from super().passes(batch, teacher_temp, parts)
            return
        pieces, device = batch.split(parts), batch.global_crops.device
        # What stochastic depth draws here, the passes that learn draw again.
        with torch.no_grad(), torch.random.fork_rng([device.index] if device.type == "cuda" else []):
            tokens = [self._tokens(piece)[0]["x_norm_clstoken"].unflatten(0, (-1, piece.images)) for piece in pieces]
        with torch.enable_grad():
            whole = torch.cat(tokens, dim=1).float().requires_grad_()
            koleo = self._koleo(whole)
            (pull,) = torch.autograd.grad(koleo, whole)
        for piece, part in zip(pieces, pull.split([piece.images for piece in pieces], dim=1), strict=True):
            terms, cls = self._terms(piece, self.guide(piece))
            terms = {name: term / parts for name, term in (terms | {"koleo": koleo.detach()}).items()}
            pulled = (cls.float() * part).sum()
            loss = sum(terms.values(), start=pulled - pulled.detach())  # the gradient alone: the value is in the term
            yield StepOutput(loss, {name: term.detach() for name, term in terms.items()})

    def _tokens(self, batch: PretrainBatch) -> list[FeatureDict]:
        with_locals = bool(self.config.dino.loss_weight) and len(batch.local_crops) > 0
        shown = [batch.global_crops, batch.local_crops] if with_locals else [batch.global_crops]
        return cast("VisionTransformer", self.student["backbone"]).forward_features(shown)

    def _terms(self, batch: PretrainBatch, said: Said) -> tuple[dict[str, Tensor], Float[Tensor, "G B D"]]:
        """The weighted terms but KoLeo, whose place is kept, and class tokens of the global crops."""
        config, features = self.config, self._tokens(batch)
        cls = features[0]["x_norm_clstoken"]
        terms = dict.fromkeys(TERMS, torch.zeros((), device=cls.device))
        if config.dino.loss_weight:
            of_locals = features[1]["x_norm_clstoken"] if len(features) > 1 else cls[:0]
            local, global_ = self._cls_terms(cls, of_locals, said.cls, batch.images)
            terms["dino_local"], terms["dino_global"] = (
                config.dino.loss_weight * local,
                config.dino.loss_weight * global_,
            )
        if config.ibot.loss_weight:
            wanted = on_grid(said.patches, grid_of(self.student, batch))
            projected = self.student["patch_projector"](features[0]["x_norm_patchtokens"])
            terms["ibot"] = config.ibot.loss_weight * feature_loss(projected, wanted, self.kind).mean()
        return terms, cls.unflatten(0, (-1, batch.images))

    def _koleo(self, by_crop: Float[Tensor, "G B D"]) -> Float32[Tensor, ""]:
        koleo = self.config.koleo
        crops = [gather_rows(crop) for crop in by_crop] if koleo.gather else list(by_crop)
        return koleo.loss_weight * torch.stack([koleo_loss(crop) for crop in crops]).sum()

    def _cls_terms(
        self,
        of_globals: Float[Tensor, "GB D"],
        of_locals: Float[Tensor, "LB D"],
        wanted: Float[Tensor, "GB Dg"],
        images: int,
    ) -> tuple[Float32[Tensor, ""], Float32[Tensor, ""]]:
        """Shares of the local and of the global pairs in the mean over all pairs."""
        projected = self.student["cls_projector"](torch.cat([of_globals, of_locals])).unflatten(0, (-1, images))
        targets = wanted.unflatten(0, (-1, images))
        n_globals = len(targets)
        global_ = feature_loss(projected[:n_globals], targets, self.kind).mean(dim=1).sum()
        locals_ = projected[n_globals:, None].expand(-1, n_globals, -1, -1)
        local = feature_loss(locals_, targets.expand_as(locals_), self.kind).mean(dim=2).sum()
        n_pairs = n_globals * (1 + len(projected) - n_globals)
        return local / n_pairs, global_ / n_pairs


class Learner(Protocol):
    """What `Together` asks of a method."""

    student: nn.ModuleDict
    teacher: nn.ModuleDict

    def learn(self, batch: PretrainBatch, said: Said, teacher_temp: float) -> StepOutput:
        """Loss of a batch of which the guide has been asked already."""
        ...


class Together(Guided):
    """Several students of one guide; none knows of the others, their losses are added up.

    The first is the run's student: figures are taken of its average. The networks of the others stand under
    `also_NAME` in `student` and `teacher`.

    Args:
        first: the run's method.
        others: name to method, each with the same guide.
    """

    def __init__(self, first: Guided, others: dict[str, Guided]) -> None:
        super().__init__()
        self.guide_by(first.guide)
        # In a tuple: their networks are ours already, under the names that a checkpoint knows.
        self._learners = (first, *others.values())
        self._names = ("", *(f"also_{name}" for name in others))
        self.student = nn.ModuleDict(dict(first.student.items()))
        self.teacher = nn.ModuleDict(dict(first.teacher.items()))
        for name, other in zip(self._names, self._learners, strict=True):
            if name:
                self.student[name], self.teacher[name] = other.student, other.teacher
            for child, module in other.named_children():  # centres
                if child not in ("student", "teacher"):
                    self.add_module(f"{name}_{child}" if name else child, module)

    def forward(self, batch: PretrainBatch, teacher_temp: float) -> StepOutput:
        """Sum of all losses; terms of the others stand under `also_NAME_TERM`."""
        said = self.guide(batch)
        terms: dict[str, Tensor] = {}
        losses = []
        for name, learner in zip(self._names, cast("Sequence[Learner]", self._learners), strict=True):
            output = learner.learn(batch, said, teacher_temp)
            losses.append(output.loss)
            terms |= {f"{name}_{term}" if name else term: value for term, value in output.terms.items()}
        return StepOutput(sum(losses[1:], start=losses[0]), terms)

    def passes(self, batch: PretrainBatch, teacher_temp: float, parts: int) -> Iterator[StepOutput]:
        """Losses of a batch in parts, one student after the other; the guide is then asked by each of them."""
        if parts == 1:
            yield self(batch, teacher_temp)
            return
        zero = torch.zeros((), device=batch.global_crops.device)
        names = [f"{name}_{term}" if name else term for name in self._names for term in TERMS]
        for name, learner in zip(self._names, self._learners, strict=True):
            for loss, terms in learner.passes(batch, teacher_temp, parts):
                own = {f"{name}_{term}" if name else term: value for term, value in terms.items()}
                yield StepOutput(loss, dict.fromkeys(names, zero) | own)

    def probabilities(self, logits: Float[Tensor, "n K"], temp: float) -> Float32[Tensor, "n K"]:
        """As the first student's method says them."""
        return self._learners[0].probabilities(logits, temp)

    def subnetworks(self) -> dict[str, nn.Module]:
        """Networks of all students by name, each of which is clipped by its own gradient norm."""
        found: dict[str, nn.Module] = {}
        for name, network in self.student.items():
            if isinstance(network, nn.ModuleDict):
                found |= {f"{name}_{part}": module for part, module in network.items()}
            else:
                found[name] = network
        return found

    def results(self) -> dict[str, nn.Module]:
        """The averages by name of their student, "" the first's."""
        pairs = zip(self._names, self._learners, strict=True)
        return {name.removeprefix("also_"): learner.teacher["backbone"] for name, learner in pairs}


def projector(width: int, out: int, layers: int) -> nn.Module:
    """One linear layer, or two with a GELU between as wide as the output."""
    if layers == 1:
        return nn.Linear(width, out)
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Linear(out, out))


def grid_of(network: nn.ModuleDict, batch: PretrainBatch) -> tuple[int, int]:
    """Patch grid that a network's backbone lays over the global crops."""
    patch = cast("VisionTransformer", network["backbone"]).patch_size
    height, width = batch.global_crops.shape[2:]
    return height // patch, width // patch


def all_patches(network: nn.ModuleDict, batch: PretrainBatch) -> PretrainBatch:
    """The batch with no crop masked and every patch of every global crop counted, with equal weights in a crop."""
    height, width = grid_of(network, batch)
    device, rows, patches = batch.global_crops.device, len(batch.global_crops), height * width
    return replace(
        batch,
        masks=torch.zeros(rows, patches, dtype=torch.bool, device=device),
        mask_indices=torch.arange(rows * patches, device=device),
        masks_weight=torch.full((rows * patches,), 1 / patches, device=device),
        padding=None,
    )


def _check_heads(student: nn.ModuleDict, guide: Guide) -> None:
    for name, head in student.items():
        if name == "backbone":
            continue
        group = name.removesuffix("_head")
        if name not in guide.network:
            raise ModelError(
                f"the teacher has no {name}, which the {group} term takes its targets from; give a run folder with its "
                "checkpoints, or distill.targets=features"
            )
        theirs, ours = guide.network[name].out_dim, head.out_dim
        if theirs != ours:
            raise ModelError(
                f"the teacher's {name} has {theirs} prototypes and the student's {ours}; "
                f"set {group}.prototypes={theirs}"
            )
