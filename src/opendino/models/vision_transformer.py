# SPDX-License-Identifier: Apache-2.0
"""The DINOv2 vision transformer, with the official parameter names; its blocks are in `opendino.layers.block`.

The way of an image: patches -> masked ones replaced -> + positions -> CLS and registers in front -> blocks -> norm.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from opendino.axes import Images, PatchMasks
from opendino.config import check_numbers
from opendino.errors import ConfigError, ModelError
from opendino.layers.block import NORM_EPS, Block, is_watched, takes_wanted
from opendino.layers.layer_scale import LayerScale
from opendino.layers.packing import pack, unpack
from opendino.layers.patch_embed import PatchEmbed
from opendino.layers.pos_embed import resize_pos_embed
from opendino.models.chunks import fold_on_load
from opendino.models.input_spec import InputSpec
from opendino.models.outputs import FeatureDict

LIMITS = {
    "img_size": (1, 2**16),
    "patch_size": (1, 2**16),
    "in_chans": (1, 2**12),
    "embed_dim": (1, 2**16),
    "depth": (1, 1000),
    "num_heads": (1, 2**16),
    "mlp_ratio": (1e-3, 1000),
    "drop_path_rate": (0, 1),
    "init_values": (0, 1000),
    "num_register_tokens": (0, 2**12),
    "interpolate_offset": (0, 1),
}
"""Smallest and largest arguments; beyond them a setting is a slip of the pen."""


class VisionTransformer(nn.Module):
    """Vision transformer that turns images of any size into CLS, register and patch features.

    Args:
        img_size: side, or (H, W), of the images the position table is laid out for; other sizes resize it.
        patch_size: side of a patch in pixels.
        in_chans: image channels C.
        embed_dim: width D.
        depth: number of blocks.
        num_heads: attention heads; published models have D / 64.
        mlp_ratio: hidden width of the feed-forward layers over D.
        qkv_bias: bias of the fused query, key, value projections.
        ffn_bias: bias of the feed-forward layers.
        proj_bias: bias of attention's output projections.
        drop_path_rate: stochastic depth in training, share of images left out of a residual.
        drop_path_uniform: the same rate in every block; else growing linearly from 0.
        init_values: start of LayerScale, 1e-5 in training recipes; None or 0 leaves it out.
        ffn_layer: "mlp", "swiglu" ("swiglufused" is the same), or "identity".
        num_register_tokens: register tokens R.
        interpolate_antialias: low-pass the position table when shrinking it (published register models).
        interpolate_offset: 0.1 in published plain models, 0.0 in register models; see `resize_pos_embed`.

    Raises:
        ModelError: a shape that cannot be built.

    Source: Oquab et al. 2023, Table 17; Darcet et al. 2023 (registers); official `models/vision_transformer.py`.
    Differs: non-square `img_size`; a list of crops runs packed on every device; `block_chunks` is gone, chunked
        weights are folded on loading.
    """

    def __init__(  # noqa: PLR0913  the official names, so that published settings can be passed on
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        ffn_bias: bool = True,
        proj_bias: bool = True,
        drop_path_rate: float = 0.0,
        drop_path_uniform: bool = True,
        init_values: float | None = None,
        ffn_layer: str = "mlp",
        num_register_tokens: int = 0,
        interpolate_antialias: bool = False,
        interpolate_offset: float = 0.1,
    ) -> None:
        super().__init__()
        _check_arguments({name: value for name, value in locals().items() if name in LIMITS})
        size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        _check_size(size, patch_size, "img_size")
        self.embed_dim = self.num_features = embed_dim
        self.patch_size, self.in_chans, self.num_heads, self.depth = patch_size, in_chans, num_heads, depth
        self.num_register_tokens = num_register_tokens
        self.interpolate_antialias, self.interpolate_offset = interpolate_antialias, interpolate_offset
        self.grid = (size[0] // patch_size, size[1] // patch_size)
        self.baked = False
        self.input_spec = InputSpec.default(size, in_chans)

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], embed_dim))
        self.register_tokens = (
            nn.Parameter(torch.empty(1, num_register_tokens, embed_dim)) if num_register_tokens else None
        )
        self.mask_token = nn.Parameter(torch.empty(1, embed_dim))
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias=qkv_bias,
                proj_bias=proj_bias,
                ffn_bias=ffn_bias,
                drop_path=drop_path_rate if drop_path_uniform else drop_path_rate * i / max(depth - 1, 1),
                init_values=init_values,
                ffn_layer=ffn_layer,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.head = nn.Identity()
        self.register_load_state_dict_pre_hook(fold_on_load)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw every parameter anew, as published; also the second step after `to_empty` of a meta-device model.

        Source: official `models/vision_transformer.py`, init_weights; the patch convolution keeps PyTorch's own.
        """
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)
        nn.init.zeros_(self.mask_token)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.Conv2d | LayerScale):
                module.reset_parameters()

    def forward(self, x: Any, masks: Any = None, is_training: bool = False) -> Any:  # noqa: ANN401  official face
        """CLS features [B, D] of images [B, C, H, W]; with `is_training` what `forward_features` returns.

        For a list of crop groups a list; CLS comes from `leading_tokens`, and costs less than all features.

        Source: official `models/vision_transformer.py`, forward: `head` is the identity unless a caller replaces it.
        Differs: the last block leaves out what only other tokens need (not where a subclass has its own features);
            a list without `is_training`.
        """
        if is_training:
            return self.forward_features(x, masks)
        if isinstance(x, Tensor):
            if self._has_own_features():
                return self.head(self.forward_features(x, masks)["x_norm_clstoken"])
            return self.head(self.leading_tokens(x, masks=masks)[0][:, 0])
        return [self(images, mask) for images, mask in _pairs(x, masks)]

    @overload
    def forward_features(self, x: Images, masks: PatchMasks | None = None) -> FeatureDict: ...
    @overload
    def forward_features(
        self, x: Sequence[Images], masks: Sequence[PatchMasks | None] | None = None
    ) -> list[FeatureDict]: ...
    def forward_features(self, x: Any, masks: Any = None) -> Any:
        """All features of a batch of images, or of several crop groups in one packed pass.

        Args:
            x: normalised images [B, C, H, W], sides multiples of the patch; or a list of such.
            masks: [B, N], True where the mask token replaces a patch, or None; for a list, a list of these.

        Returns:
            A `FeatureDict`; for a list, one for each entry, equal to separate passes.

        Raises:
            ModelError: a size, channel count or mask that does not fit.

        Source: official `models/vision_transformer.py`, forward_features and forward_features_list.
        """
        if isinstance(x, Tensor):
            (tokens,) = self._after_blocks(self._tokens(x, masks), {self.depth - 1})
            return self._split(self.norm(tokens), tokens, masks)
        pairs = _pairs(x, masks)
        packed, groups = pack([self._tokens(images, mask) for images, mask in pairs])
        for block in self.blocks:
            packed = block(packed, groups)
        normed = unpack(self.norm(packed), groups)
        return [self._split(n, p, m) for n, p, (_, m) in zip(normed, unpack(packed, groups), pairs, strict=True)]

    def leading_tokens(
        self, x: Tensor, n: int | Sequence[int] = 1, masks: Tensor | None = None
    ) -> tuple[Float[Tensor, "B R1 D"], ...]:
        """CLS and registers after chosen blocks, through the final norm, in the order of depth.

        They are those of `forward_features` and `get_intermediate_layers`, for less work: the last block that is run
        computes of the patches only keys and values. With all of ViT-S/14's or ViT-B/14's blocks at 224 pixels that
        leaves out 7 %, of ViT-L/14's 3.5 %. It runs whole where stochastic depth draws, where hooks listen to it, the
        final norm or to every module, and where that norm is not a layer norm and may look at all tokens.

        Args:
            x: normalised images [B, C, H, W].
            n: how many of the last blocks; or the blocks' numbers, counted from 0.
            masks: [B, N], True where the mask token replaces a patch.

        Returns:
            For each block [B, 1 + R, D], CLS first.

        Raises:
            ModelError: as `get_intermediate_layers`.
        """
        wanted, first = self._wanted_blocks(n), 1 + self.num_register_tokens
        whole = type(self.norm) is not nn.LayerNorm or is_watched(self.norm)
        taken = self._after_blocks(self._tokens(x, masks), wanted, None if whole else first)
        return tuple(self.norm(tokens)[:, :first] for tokens in taken)

    def chosen_tokens(
        self,
        x: Sequence[Float[Tensor, "_ C _ _"]],
        patches: Sequence[Int[Tensor, " _"]],
        masks: Sequence[Bool[Tensor, "_ _"] | None] | None = None,
    ) -> list[tuple[Float[Tensor, "_ D"], Float[Tensor, "_ D"]]]:
        """CLS and some patches of several crop groups, in one packed pass: what `forward_features` has there.

        It costs less: the last block projects and feeds forward those tokens alone, which are all that its hooks and
        the final norm's see. It runs whole where a subclass has features of its own, where that norm is not a layer
        norm, and where the last block is not ours or compiled for fixed shapes.

        Args:
            x: normalised images [B, C, H, W] of each group.
            patches: of each group which patches, counted through all of its images, row by row.
            masks: as in `forward_features`.

        Returns:
            Of each group CLS of every image, and those patches.

        Raises:
            ModelError: a size, channel count or mask that does not fit; on a CPU also a patch that is not there.
        """
        if self._has_own_features() or type(self.norm) is not nn.LayerNorm or not takes_wanted(self.blocks[-1]):
            found = zip(self.forward_features(x, masks), patches, strict=True)
            return [(of["x_norm_clstoken"], of["x_norm_patchtokens"].flatten(0, 1)[some]) for of, some in found]
        packed, groups = pack([self._tokens(images, mask) for images, mask in _pairs(x, masks)])
        wanted = [self._places(*group, some) for group, some in zip(groups, patches, strict=True)]
        for block in self.blocks[:-1]:
            packed = block(packed, groups)
        found = self.norm(self.blocks[-1](packed, groups, wanted)).split([len(places) for places in wanted])
        return [(tokens[:images], tokens[images:]) for tokens, (images, _) in zip(found, groups, strict=True)]

    def get_intermediate_layers(
        self,
        x: Images,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
        return_register_tokens: bool = False,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, ...], ...]:
        """Patch features after chosen blocks, in the order of depth.

        Args:
            x: normalised images.
            n: how many of the last blocks; or the blocks' numbers, counted from 0.
            reshape: give [B, D, h, w] in place of [B, N, D].
            return_class_token: give (patches, CLS [B, D]) for each block.
            norm: pass each output through the final norm.
            return_register_tokens: add the registers [B, R, D] as the last of each block's tuple.

        Raises:
            ModelError: a block asked for does not exist, or the image does not fit.

        Source: official `models/vision_transformer.py`, get_intermediate_layers.
        Differs: registers on request; blocks after the last one asked for are not run.
        """
        wanted = self._wanted_blocks(n)
        h, w = self._grid_of(x)
        taken = self._after_blocks(self._tokens(x, None), wanted)
        if norm:
            taken = [self.norm(tokens) for tokens in taken]
        first = 1 + self.num_register_tokens
        patches = [t[:, first:] for t in taken]
        if reshape:
            patches = [p.transpose(1, 2).unflatten(2, (h, w)).contiguous() for p in patches]
        columns = [patches]
        if return_class_token:
            columns.append([t[:, 0] for t in taken])
        if return_register_tokens:
            columns.append([t[:, 1:first] for t in taken])
        return tuple(patches) if len(columns) == 1 else tuple(zip(*columns, strict=True))

    def bake(self, size: int | tuple[int, int]) -> "VisionTransformer":
        """A copy for images of one size: its position table is resized now, so that an export holds no resizing.

        Args:
            size: side, or (H, W), in pixels.

        Returns:
            A model that gives the same features at this size, and refuses others.

        Raises:
            ModelError: the size is not a multiple of the patch, or the model is baked for another one.
        """
        height, width = (size, size) if isinstance(size, int) else size
        _check_size((height, width), self.patch_size, "bake")
        grid = (height // self.patch_size, width // self.patch_size)
        self._check_baked(grid, "bake")
        baked = copy.deepcopy(self)
        with torch.no_grad():
            table = self._positions(grid).clone()
        baked.pos_embed = nn.Parameter(table, requires_grad=self.pos_embed.requires_grad)
        baked.grid, baked.baked = grid, True
        return baked

    def _check_baked(self, grid: tuple[int, int], where: str) -> None:
        if self.baked and grid != self.grid:
            given, made = ([side * self.patch_size for side in sides] for sides in (grid, self.grid))
            raise ModelError(
                f"{where}: {given[0]}x{given[1]} pixels do not fit a model that is baked for {made[0]}x{made[1]}; "
                "bake the model it was made from for this size"
            )

    def _tokens(self, x: Tensor, masks: Tensor | None) -> Float[Tensor, "B T D"]:
        grid = self._grid_of(x)
        patches = self.patch_embed(x)
        if masks is not None:
            self._check_masks(masks, patches)
            patches = torch.where(masks[:, :, None], self.mask_token.to(patches.dtype), patches)
        positions = self.pos_embed if self.baked else self._positions(grid)
        cls = (self.cls_token + positions[:, :1]).expand(x.shape[0], -1, -1)
        patches = patches + positions[:, 1:]
        if self.register_tokens is None:
            return torch.cat([cls, patches], dim=1)
        # registers have no position
        return torch.cat([cls, self.register_tokens.expand(x.shape[0], -1, -1), patches], dim=1)

    def _positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 tokens D"]:
        return resize_pos_embed(
            self.pos_embed,
            grid,
            offset=self.interpolate_offset,
            antialias=self.interpolate_antialias,
            source=self.grid,
        )

    def _after_blocks(
        self, tokens: Float[Tensor, "B T D"], wanted: set[int], first: int | None = None
    ) -> list[Float[Tensor, "B _ D"]]:
        """Tokens after each of the wanted blocks, in the order of depth: all, or the first few."""
        taken, last = [], max(wanted)
        # MKL rounds a product of a single row by where its weights lie in memory, and one of two other than one of many
        few = max(first or 0, 4)
        for i, block in enumerate(self.blocks[: last + 1]):
            short = first is not None and i == last and hasattr(type(block), "first_tokens")
            tokens = block.first_tokens(tokens, few) if short else block(tokens)  # pyrefly: ignore[not-callable]
            if i in wanted:
                taken.append(tokens if first is None else tokens[:, :first])
        return taken

    def _has_own_features(self) -> bool:
        """Whether a subclass that is not ours says what features are."""
        return not type(self).forward_features.__module__.startswith("opendino.")

    def _places(self, images: int, tokens: int, patches: Int[Tensor, " _"]) -> Int[Tensor, " n"]:
        """Where CLS of all images and some patches stand among their tokens, image after image."""
        first, n = 1 + self.num_register_tokens, tokens - 1 - self.num_register_tokens
        if patches.device.type == "cpu" and not ((patches >= 0) & (patches < images * n)).all():
            raise ModelError(f"chosen_tokens: there are patches 0 to {images * n - 1}, not {patches.tolist()}")
        cls = torch.arange(0, images * tokens, tokens, device=patches.device)
        return torch.cat([cls, patches // n * tokens + first + patches % n])

    def _split(self, normed: Tensor, prenorm: Tensor, masks: Tensor | None) -> FeatureDict:
        first = 1 + self.num_register_tokens
        return FeatureDict(
            x_norm_clstoken=normed[:, 0],
            x_norm_regtokens=normed[:, 1:first],
            x_norm_patchtokens=normed[:, first:],
            x_prenorm=prenorm,
            masks=masks,
        )

    def _wanted_blocks(self, n: int | Sequence[int]) -> set[int]:
        wanted = set(range(self.depth - n, self.depth)) if isinstance(n, int) else set(n)
        if not wanted or min(wanted) < 0 or max(wanted) >= self.depth:
            raise ModelError(
                f"VisionTransformer: n={n} asks for blocks that a backbone of {self.depth} does not have; "
                f"pass 1 to {self.depth} for the last ones, or a list of numbers from 0 to {self.depth - 1}"
            )
        return wanted

    def _grid_of(self, x: Tensor) -> tuple[int, int]:
        p = self.patch_size
        if torch.jit.is_tracing():  # sizes are tensors here: a check would freeze them into the trace
            return x.shape[2] // p, x.shape[3] // p
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ModelError(
                f"VisionTransformer: images of shape {tuple(x.shape)} do not fit; "
                f"wanted [images, {self.in_chans} channels, height, width]"
            )
        _check_size((x.shape[2], x.shape[3]), p, "VisionTransformer")
        grid = (x.shape[2] // p, x.shape[3] // p)
        self._check_baked(grid, "VisionTransformer")
        return grid

    def _check_masks(self, masks: Tensor, patches: Tensor) -> None:
        if not torch.jit.is_tracing() and masks.shape != patches.shape[:2]:
            raise ModelError(
                f"forward_features: masks of shape {tuple(masks.shape)} do not fit "
                f"{patches.shape[0]} images of {patches.shape[1]} patches; wanted {tuple(patches.shape[:2])}"
            )


def _pairs(x: Sequence[Tensor], masks: Sequence[Tensor | None] | None) -> list[tuple[Tensor, Tensor | None]]:
    """Batches of images, each with its masks."""
    masks = [None] * len(x) if masks is None else masks
    if not x or len(x) != len(masks):
        raise ModelError(
            f"forward_features: {len(x)} image batches with {len(masks)} masks; "
            "pass at least one batch, and one mask (or None) for each"
        )
    return list(zip(x, masks, strict=True))


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    try:
        check_numbers("VisionTransformer", arguments, LIMITS)
    except ConfigError as error:
        raise ModelError(str(error)) from None


def _check_size(size: tuple[int, int], patch_size: int, where: str) -> None:
    if all(side >= patch_size and side % patch_size == 0 for side in size):
        return
    nearest = dict.fromkeys("x".join(str(_multiple(side, patch_size, up)) for side in size) for up in (0, 1))
    raise ModelError(
        f"{where}: {size[0]}x{size[1]} pixels are not a multiple of the patch size {patch_size}; "
        f"the nearest that would do: {' and '.join(nearest)}"
    )


def _multiple(side: int, patch_size: int, up: int) -> int:
    """The multiple of the patch at or below `side`, or at or above it; at least one patch."""
    return max((side + up * (patch_size - 1)) // patch_size, 1) * patch_size
