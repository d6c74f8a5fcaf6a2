# SPDX-License-Identifier: Apache-2.0
"""DINOv2: what the teacher says of a batch, what the student says, and the loss between; read `losses/dino.py` next.

`examples/minimal_dinov2.py` is the same method on one page, without options.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from opendino.data.collate import PretrainBatch
from opendino.distributed import gather_rows
from opendino.errors import ModelError
from opendino.layers.dino_head import DINOHead
from opendino.losses._chunked import LastLayer, Unprojected
from opendino.losses._cross_entropy import Pair, cross_entropies
from opendino.losses.centering import Centering
from opendino.losses.dino import STUDENT_TEMP, dino_pairs, dino_terms
from opendino.losses.ibot import mean_of_crops
from opendino.losses.koleo import koleo_loss
from opendino.losses.sinkhorn import sinkhorn_knopp
from opendino.methods.method import Method, StepOutput
from opendino.methods.settings import DINOConfig, DINOv2Config, IBOTConfig
from opendino.models.outputs import FeatureDict
from opendino.models.vision_transformer import VisionTransformer

IN_BLOCKS_FROM = 16384
"""Prototypes from which the student's last layer and its loss are computed together (`losses/_chunked.py`)."""


class Targets(NamedTuple):
    """What the teacher says; None where no term asks.

    Attributes:
        crops: probabilities of the unmasked global crops.
        patches: probabilities of the patches that are masked for the student; of no meaning for padding.
    """

    crops: Float32[Tensor, "G B K"] | None
    patches: Float32[Tensor, "M Kp"] | None


class Tokens(NamedTuple):
    """Final tokens that losses look at.

    Attributes:
        cls: class tokens of each group of crops.
        patches: masked patches of the first group.
    """

    cls: list[Float[Tensor, "_ D"]]
    patches: Float[Tensor, "M D"]


class StudentViews(NamedTuple):
    """What the student says; logits are None where no term asks, and may not be there yet (`Unprojected`).

    Attributes:
        cls: class tokens of the masked global crops, from the backbone.
        global_logits: [G, B, K], prototype logits of those.
        local_logits: [L, B, K], prototype logits of the local crops; L may be 0.
        patch_logits: [M, Kp], prototype logits of the masked patches.
    """

    cls: Float[Tensor, "G B D"]
    global_logits: Any
    local_logits: Any
    patch_logits: Any


class DINOv2(Method):
    """Student, teacher and their losses.

    The teacher starts as a copy of the student, whatever it held before, is always in evaluation mode and has no
    gradients; it moves by `update_teacher` alone. Neither network knows of the losses: `student` and `teacher` are
    ModuleDicts of `backbone`, `dino_head` and `ibot_head`, the heads as far as a term needs them.

    Args:
        student_backbone: the backbone to train; its present weights are the start.
        teacher_backbone: the same shape, without stochastic depth.
        config: weights, heads and schedules.

    Raises:
        ModelError: the two backbones differ in shape.

    Source: Oquab et al. 2023, section 4; official `train/ssl_meta_arch.py`.
    Differs: each term can be left out, also the DINO term; what is returned is what is to be back-propagated.
    """

    def __init__(
        self,
        student_backbone: VisionTransformer,
        teacher_backbone: VisionTransformer,
        config: DINOv2Config | None = None,
    ) -> None:
        super().__init__()
        self.config = config or DINOv2Config()
        self.student = _network(student_backbone, self.config)
        self.teacher = _network(teacher_backbone, self.config)
        self.reset_teacher()
        dino, ibot = self.config.dino, self.config.ibot
        # The centres' names in the state dict are the official ones.
        if dino.centering == "centering" and dino.loss_weight:
            self.dino_loss = Centering(dino.prototypes)
        if dino.centering == "centering" and ibot.loss_weight:
            self.ibot_patch_loss = Centering(ibot.prototypes if ibot.separate_head else dino.prototypes, patches=True)
        self.train()

    def forward(self, batch: PretrainBatch, teacher_temp: float) -> StepOutput:
        """Loss of a batch; in training the centres of the targets move on.

        Args:
            batch: normalised crops and masks, on the device of the networks.
            teacher_temp: temperature of the targets at this step.
        """
        targets = self.targets(batch, teacher_temp)  # before the student, whose activations stay for the backward pass
        return self.loss(self.student_views(batch), targets, batch)

    @torch.no_grad()
    def targets(self, batch: PretrainBatch, teacher_temp: float) -> Targets:
        """What the teacher says of the unmasked global crops and, where the student's are masked, of their patches."""
        dino, ibot = self.config.dino, self.config.ibot
        if not (dino.loss_weight or ibot.loss_weight):
            return Targets(None, None)
        return self._targets_of([batch], teacher_temp)[0]

    def passes(self, batch: PretrainBatch, teacher_temp: float, parts: int) -> Iterator[StepOutput]:
        """As `Method.passes`, whatever compares the images of the batch.

        The teacher is asked of the whole batch first, so its targets are centred or evened out over all of it. Terms
        that compare images with each other (KoLeo) and their gradient on what they are made of (class tokens) are
        computed once for the whole batch, from a pass of the student that keeps nothing; the passes that learn then
        multiply that gradient with their own tokens.

        Args:
            batch: as in `forward`.
            teacher_temp: as in `forward`.
            parts: as many passes.

        Source: Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup" (the cached
            gradient).
        """
        if parts == 1:
            yield self(batch, teacher_temp)
            return
        pieces = batch.split(parts)
        targets = self._targets_of(pieces, teacher_temp)
        compared, pulls = self._compared_of(pieces)
        for piece, target, pull in zip(pieces, targets, pulls, strict=True):
            views = self.student_views(piece)
            terms = {name: term / parts for name, term in (self.terms(views, target, piece) | compared).items()}
            loss = sum(terms.values(), start=torch.zeros((), device=views.cls.device))
            for tokens, gradient in zip(self._comparable(views), pull, strict=False):
                pulled = (tokens.float() * gradient).sum()
                loss = loss + (pulled - pulled.detach())  # the gradient alone: the value is in the term
            yield StepOutput(loss, {name: term.detach() for name, term in terms.items()})

    def _compared_of(self, pieces: Sequence[PretrainBatch]) -> tuple[dict[str, Tensor], list[tuple[Tensor, ...]]]:
        """The terms that compare images, of the whole batch, and their gradients on `_comparable` of each piece."""
        if not self._compares():
            return {}, [()] * len(pieces)
        device = pieces[0].global_crops.device
        # What stochastic depth draws here, the passes that learn draw again.
        with torch.no_grad(), torch.random.fork_rng([device.index] if device.type == "cuda" else []):
            said = [self._comparable(self.student_views(piece)) for piece in pieces]
        with torch.enable_grad():
            whole = [torch.cat(tokens, dim=1).float().requires_grad_() for tokens in zip(*said, strict=True)]
            terms = self._compare(*whole)
            loss = sum(terms.values(), start=torch.zeros((), device=device))
            pulls = torch.autograd.grad(loss, whole, allow_unused=True, materialize_grads=True)
        sizes = [piece.images for piece in pieces]
        cut = zip(*[pull.split(sizes, dim=1) for pull in pulls], strict=True)
        return {name: term.detach() for name, term in terms.items()}, list(cut)

    def _compares(self) -> bool:
        """Whether any term compares images with each other."""
        return bool(self.config.koleo.loss_weight)

    def _comparable(self, views: StudentViews) -> tuple[Float[Tensor, "G B _"], ...]:
        """What those terms are made of."""
        return (views.cls,)

    def _compare(self, cls: Float[Tensor, "G B D"], *others: Tensor) -> dict[str, Float32[Tensor, ""]]:
        """The weighted terms that compare images with each other; only asked for where there are any."""
        del others
        crops = [gather_rows(crop) for crop in cls] if self.config.koleo.gather else list(cls)
        return {"koleo": self.config.koleo.loss_weight * torch.stack([koleo_loss(crop) for crop in crops]).sum()}

    @torch.no_grad()
    def teacher_logits(
        self, batch: PretrainBatch
    ) -> tuple[Float[Tensor, "rows K"] | None, Float[Tensor, "M Kp"] | None]:
        """Prototype logits of the unmasked global crops and of the patches that targets are made of."""
        (cls,), patches = self._looked_at(self.teacher, [batch.global_crops], [None], batch.mask_indices)
        return self._logits(self.teacher, cls, patches)

    @torch.no_grad()
    def _targets_of(self, pieces: Sequence[PretrainBatch], teacher_temp: float) -> list[Targets]:
        """Targets of the parts of a batch, made as one."""
        of_crops, of_patches = zip(*[self.teacher_logits(piece) for piece in pieces], strict=True)
        crops = self._as_one("dino_loss", of_crops, teacher_temp)
        patches = self._as_one("ibot_patch_loss", of_patches, teacher_temp, [self._real(piece) for piece in pieces])
        return [
            Targets(None if rows is None else rows.unflatten(0, (-1, piece.images)), of_masked)
            for piece, rows, of_masked in zip(pieces, crops, patches, strict=True)
        ]

    def _real(self, batch: PretrainBatch) -> Bool[Tensor, " M"] | None:
        """Which rows of the patches' logits are no padding; None where none is."""
        return batch.masked

    def _as_one(
        self, center: str, parts: Sequence[Tensor | None], temp: float, real: Sequence[Tensor | None] = ()
    ) -> Sequence[Tensor | None]:
        """Targets of the parts; `real` says which of their rows are no padding."""
        logits = [part for part in parts if part is not None]
        if not logits:
            return parts
        known = [one for one in real if one is not None]
        whole = logits[0] if len(logits) == 1 else torch.cat(logits)  # not a copy of the largest matrix of a step
        targets = self._to_targets(center, whole, temp, torch.cat(known) if known else None)
        return targets.split([len(part) for part in logits])

    def student_views(self, batch: PretrainBatch) -> StudentViews:
        """What the student says of the masked global crops and the local crops, in one packed pass of the backbone."""
        with_locals = bool(self.config.dino.loss_weight) and len(batch.local_crops) > 0
        crops = [batch.global_crops, batch.local_crops] if with_locals else [batch.global_crops]
        cls, patches = self.student_tokens(crops, [batch.masks, None][: len(crops)], batch.mask_indices)
        of_globals, of_locals = cls[0], cls[-1] if with_locals else cls[-1][:0]
        cls_logits, patch_logits = self._logits(self.student, torch.cat([of_locals, of_globals]), patches)
        by_crop = None if cls_logits is None else cls_logits.unflatten(0, (-1, batch.images))
        n_locals = len(of_locals) // batch.images
        return StudentViews(
            cls=of_globals.unflatten(0, (-1, batch.images)),
            global_logits=None if by_crop is None else by_crop[n_locals:],
            local_logits=None if by_crop is None else by_crop[:n_locals],
            patch_logits=patch_logits,
        )

    def student_tokens(self, crops: list[Tensor], masks: list[Tensor | None], indices: Int64[Tensor, " M"]) -> Tokens:
        """What losses look at of each group of crops, in one packed pass of the student's backbone.

        Args:
            crops: groups of crops, the global ones first.
            masks: of each group.
            indices: masked patches of the global crops, counted through all of them.
        """
        return self._looked_at(self.student, crops, masks, indices)

    def _looked_at(
        self, network: nn.ModuleDict, crops: list[Tensor], masks: list[Tensor | None], indices: Int64[Tensor, " M"]
    ) -> Tokens:
        backbone = cast("VisionTransformer", network["backbone"])
        indices = indices if self.config.ibot.loss_weight else indices[:0]
        if not self.config.dino.needed_tokens:
            return tokens_of(backbone(crops, masks=masks, is_training=True), indices)
        found = backbone.chosen_tokens(crops, [indices, *[indices[:0]] * (len(crops) - 1)], masks)
        return Tokens([cls for cls, _ in found], found[0][1])

    def loss(self, views: StudentViews, targets: Targets, batch: PretrainBatch) -> StepOutput:
        """The weighted terms between what the student and the teacher say, and their sum."""
        terms = self.terms(views, targets, batch)
        if self._compares():
            terms |= self._compare(*self._comparable(views))
        loss = sum(terms.values(), start=torch.zeros((), device=views.cls.device))
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()})

    def terms(self, views: StudentViews, targets: Targets, batch: PretrainBatch) -> dict[str, Tensor]:
        """The weighted terms but KoLeo, whose place is kept: those that are means over images."""
        config = self.config
        terms = dict.fromkeys(("dino_local", "dino_global", "ibot", "koleo"), torch.zeros((), device=views.cls.device))
        weights = {"ibot": config.ibot.loss_weight}
        for name, term in self._view_terms(views, targets, batch).items():
            terms[name] = weights.get(name, config.dino.loss_weight) * term
        return terms

    def _view_terms(self, views: StudentViews, targets: Targets, batch: PretrainBatch) -> dict[str, Tensor]:
        """The terms that hold what the student says against what the teacher says, without weights.

        All at once: terms of one head multiply its last layer once, where their logits are not there yet.
        """
        pairs: list[Pair] = []
        if targets.crops is not None:
            pairs += dino_pairs(views.global_logits, views.local_logits, targets.crops)
        if targets.patches is not None:
            pairs.append((views.patch_logits, targets.patches))
        found = cross_entropies(pairs, STUDENT_TEMP)
        of_views: dict[str, Tensor] = {}
        if targets.crops is not None:
            local, global_ = dino_terms(found[0], found[1], n_globals=len(targets.crops))
            of_views |= {"dino_local": local, "dino_global": global_}
        if targets.patches is not None:
            of_views["ibot"] = mean_of_crops(found[-1], batch.masks_weight, len(batch.masks))
        return of_views

    @torch.no_grad()
    def probabilities(self, logits: Float[Tensor, "n K"], temp: float) -> Float32[Tensor, "n K"]:
        """The teacher's probabilities of images, less the running centre where there is one; it does not move.

        What Sinkhorn-Knopp would make of them is left out: it evens them out whatever the network says.
        """
        logits = logits.float()
        if hasattr(self, "dino_loss"):
            logits = logits - self.dino_loss.center
        return super().probabilities(logits, temp)

    def reset_teacher(self) -> None:
        """Make the teacher a copy of the student, as at the start of a run.

        Raises:
            ModelError: the two differ in shape.
        """
        try:
            self.teacher.load_state_dict(self.student.state_dict())
        except RuntimeError as error:
            raise ModelError(
                f"student and teacher differ in shape; build both from the same settings: {error}"
            ) from None
        self.teacher.requires_grad_(False)

    def _to_targets(
        self, center: str, logits: Float[Tensor, "rows K"], temp: float, real: Bool[Tensor, " rows"] | None = None
    ) -> Float32[Tensor, "rows K"]:
        if self.config.dino.centering == "sinkhorn_knopp":
            return sinkhorn_knopp(logits, temp, real)
        if self.config.dino.centering == "none":
            return super().probabilities(logits, temp)
        return self.get_submodule(center)(logits, temp, real)

    def _logits(
        self, network: nn.ModuleDict, cls: Float[Tensor, "rows D"], patches: Float[Tensor, "M D"]
    ) -> tuple[Any, Any]:
        """Prototype logits of crops and of patches, by one call where they share a head; None where no term asks."""
        dino, ibot = self.config.dino, self.config.ibot
        in_blocks = dino.in_blocks and network is self.student
        if dino.loss_weight and ibot.loss_weight and not ibot.separate_head:
            both = _project(network["dino_head"], torch.cat([cls, patches]), in_blocks)
            of_crops, of_patches = both.split([len(cls), len(patches)])
            return of_crops, of_patches
        patch_head = "ibot_head" if ibot.separate_head else "dino_head"
        return (
            _project(network["dino_head"], cls, in_blocks) if dino.loss_weight else None,
            _project(network[patch_head], patches, in_blocks) if ibot.loss_weight else None,
        )


def _network(backbone: VisionTransformer, config: DINOv2Config) -> nn.ModuleDict:
    dino, ibot = config.dino, config.ibot
    network = nn.ModuleDict({"backbone": backbone})
    if dino.loss_weight or (ibot.loss_weight and not ibot.separate_head):
        network["dino_head"] = _head(backbone.embed_dim, dino)
    if ibot.loss_weight and ibot.separate_head:
        network["ibot_head"] = _head(backbone.embed_dim, ibot)
    return network


def _head(in_dim: int, config: DINOConfig | IBOTConfig) -> DINOHead:
    return DINOHead(in_dim, config.prototypes, config.hidden_dim, config.bottleneck_dim, config.nlayers)


def _project(head: nn.Module, tokens: Float[Tensor, "rows D"], in_blocks: bool) -> Any:  # noqa: ANN401  logits or not yet
    """Logits; or what they would be made of, where they are many and the head's parameters are at hand as they are."""
    if not (in_blocks and isinstance(head, DINOHead) and head.out_dim >= IN_BLOCKS_FROM):
        return head(tokens)
    v, g = head.last_layer.weight_v, head.last_layer.weight_g
    return Unprojected(head.bottleneck(tokens), LastLayer(v, g)) if type(v) is nn.Parameter else head(tokens)


def tokens_of(features: Sequence[FeatureDict], indices: Int64[Tensor, " M"]) -> Tokens:
    """Those of groups of which all is known; `indices` count the patches of the first group."""
    patches = features[0]["x_norm_patchtokens"].flatten(0, 1)
    return Tokens([group["x_norm_clstoken"] for group in features], patches.index_select(0, indices))
