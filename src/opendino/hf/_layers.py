# SPDX-License-Identifier: Apache-2.0
"""The modules inside the models of the Hugging Face face, under the names of the published files; see `modeling.py`.

The names in memory are those of the hub layout (`attention.attention.query` ...), so that weights, LoRA settings and
hooks written for published checkpoints fit. Numbers equal those of `opendino.models` where the settings agree.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from opendino.hf.configuration import Dinov2Config, Grid, check_shape, pair, resize_numbers
from opendino.hf.errors import InputError
from opendino.layers.pos_embed import resize_pos_embed
from opendino.layers.swiglu import swiglu_hidden_dim

DROPOUT_AFTER_ATTENTION = int(transformers.__version__.partition(".")[0]) < 5
"""`hidden_dropout_prob` acts after the embeddings, in transformers 4 also after attention; here as installed."""

Mask = Any
"""None, a tensor, or the block mask of flex_attention."""


class Dinov2PatchEmbeddings(nn.Module):
    """Image to patch tokens, row by row; what is left over beside the last whole patch is not seen."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.image_size, self.patch_size = pair(config.image_size), pair(config.patch_size)
        self.grid = (self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1])
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_channels = config.num_channels
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )

    def grid_of(self, pixel_values: Shaped[Tensor, "B C H W"]) -> Grid:
        """(h, w): whole patches down and across."""
        return pixel_values.shape[2] // self.patch_size[0], pixel_values.shape[3] // self.patch_size[1]

    def forward(self, pixel_values: Shaped[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """Embed each patch, in the type of the weights.

        Raises:
            InputError: another number of channels than the config's.
        """
        if not torch.jit.is_tracing() and (pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels):
            raise InputError(
                f"pixel_values of shape {tuple(pixel_values.shape)}; wanted [images, channels, height, width] with "
                f"{self.num_channels} channels, as num_channels of the config says"
            )
        pixel_values = pixel_values.to(self.projection.weight.dtype)
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class Dinov2Embeddings(nn.Module):
    """CLS, registers and patches with their positions; registers have none.

    Args:
        config: shape; with a field `num_register_tokens` the model has registers.
    """

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        check_shape(config)  # again: fields may have been set since
        registers = getattr(config, "num_register_tokens", None)
        D = config.hidden_size
        self.config, self.baked = config, False
        self.patch_embeddings = Dinov2PatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.mask_token = nn.Parameter(torch.zeros(1, D)) if getattr(config, "use_mask_token", True) else None
        self.register_tokens = None if registers is None else nn.Parameter(torch.zeros(1, registers, D))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + self.patch_embeddings.num_patches, D))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, pixel_values: Shaped[Tensor, "B C H W"], bool_masked_pos: Shaped[Tensor, "B masked"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Tokens in the order CLS, registers, patches.

        Args:
            pixel_values: normalised images.
            bool_masked_pos: true (or 1) where the mask token replaces a patch.

        Raises:
            InputError: images or masks that do not fit.
        """
        patches = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            patches = self._masked(patches, bool_masked_pos)
        positions = self._positions(self.patch_embeddings.grid_of(pixel_values))
        B = patches.shape[0]
        cls = (self.cls_token + positions[:, :1]).expand(B, -1, -1)
        tokens = [cls, patches + positions[:, 1:]]
        if self.register_tokens is not None:
            tokens.insert(1, self.register_tokens.expand(B, -1, -1))
        return self.dropout(torch.cat(tokens, dim=1))

    @torch.no_grad()
    def bake(self, size: Grid) -> None:
        """Resize the position table to images of (height, width) pixels, once and for good.

        Raises:
            InputError: a side is below a patch, or the table is baked for another size.
        """
        patch = self.patch_embeddings.patch_size
        grid = (size[0] // patch[0], size[1] // patch[1])
        if min(grid) < 1:
            raise InputError(f"bake: {size[0]}x{size[1]} pixels hold no patch of {patch[0]}x{patch[1]}")
        table = self._positions(grid).detach().clone()
        self.position_embeddings = nn.Parameter(table, requires_grad=self.position_embeddings.requires_grad)
        self.patch_embeddings.image_size, self.patch_embeddings.grid = size, grid
        self.patch_embeddings.num_patches = grid[0] * grid[1]
        self.baked = True

    def _masked(self, patches: Float[Tensor, "B N D"], masks: Shaped[Tensor, "B masked"]) -> Float[Tensor, "B N D"]:
        if self.mask_token is None:
            raise InputError("bool_masked_pos was given, but use_mask_token is False in the config: leave it out")
        if not torch.jit.is_tracing() and masks.shape != patches.shape[:2]:
            raise InputError(
                f"bool_masked_pos of shape {tuple(masks.shape)}; wanted {tuple(patches.shape[:2])}: images, patches"
            )
        return torch.where(masks[..., None].bool(), self.mask_token.to(patches.dtype), patches)

    def _positions(self, grid: Grid) -> Float[Tensor, "1 tokens D"]:
        if self.baked:
            if not torch.jit.is_tracing() and grid != self.patch_embeddings.grid:
                raise InputError(
                    f"images of {grid[0]}x{grid[1]} patches do not fit a model that is baked for "
                    f"{self.patch_embeddings.grid[0]}x{self.patch_embeddings.grid[1]}; bake the model it was made from"
                )
            return self.position_embeddings
        offset, antialias = resize_numbers(self.config.pos_embed_resize, registers=self.register_tokens is not None)
        source = self.patch_embeddings.grid
        return resize_pos_embed(self.position_embeddings, grid, offset=offset, antialias=antialias, source=source)


class Dinov2SelfAttention(nn.Module):
    """Multi-head self-attention without the output projection; how it is computed is the config's choice."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        D = config.hidden_size
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = D // config.num_attention_heads
        self.scaling = self.attention_head_size**-0.5
        self.is_causal = False  # read by transformers' attention functions
        self.query = nn.Linear(D, D, bias=config.qkv_bias)
        self.key = nn.Linear(D, D, bias=config.qkv_bias)
        self.value = nn.Linear(D, D, bias=config.qkv_bias)

    def forward(
        self, hidden_states: Float[Tensor, "B T D"], attention_mask: Mask = None, output_attentions: bool = False
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B A T T"] | None]:
        """Mixed values, and attention's weights where they are asked for.

        Weights exist only in the plain computation, so asking for them uses it, whatever the config says.
        """
        B, T, D = hidden_states.shape
        query, key, value = (
            layer(hidden_states).view(B, T, self.num_attention_heads, self.attention_head_size).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        implementation = "eager" if output_attentions else self.config._attn_implementation or "eager"
        attend = OWN_ATTENTION.get(implementation) or ALL_ATTENTION_FUNCTIONS[implementation]
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            mask_for(attention_mask, implementation, query),
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            is_causal=False,
        )
        return mixed.reshape(B, T, D), weights


def plain_attention(
    module: nn.Module,
    query: Float[Tensor, "B A T d"],
    key: Float[Tensor, "B A T d"],
    value: Float[Tensor, "B A T d"],
    attention_mask: Float[Tensor, "..."] | None,
    *,
    dropout: float,
    scaling: float,
    **_: Any,  # noqa: ANN401  what other attention functions take
) -> tuple[Float[Tensor, "B T A d"], Float[Tensor, "B A T T"]]:
    """Attention by its formula, softmax(q k^T * scaling + mask) v, which also gives the weights."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def fused_attention(
    _module: nn.Module,
    query: Float[Tensor, "B A T d"],
    key: Float[Tensor, "B A T d"],
    value: Float[Tensor, "B A T d"],
    attention_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None,
    *,
    dropout: float,
    scaling: float,
    **_: Any,  # noqa: ANN401  what other attention functions take
) -> tuple[Float[Tensor, "B T A d"], None]:
    """The same by torch's fused kernel, without the weights.

    Differs: transformers' function of this kind looks at the number of tokens, which freezes it into traced models.
    """
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return mixed.transpose(1, 2), None


OWN_ATTENTION: dict[str, Callable] = {"eager": plain_attention, "sdpa": fused_attention}
"""By the name in `set_attn_implementation`; all other names are transformers' functions."""


def mask_for(mask: Mask, implementation: str, query: Float[Tensor, "B A T d"]) -> Mask:
    """A mask of tokens in the form that an attention function takes.

    Args:
        mask: [B, T], true (or 1) for tokens that may be seen; None, or anything already in its form, passes.
        implementation: name of the attention function.
        query: for type, device and sizes.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 2 or "flash" in implementation:
        return mask
    seen: Bool[Tensor, "B T"] = mask.bool()
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        B, _, T, _ = query.shape
        return create_block_mask(lambda b, _h, _q, k: seen[b, k], B, None, T, T, device=query.device)
    seen = seen[:, None, None, :]
    if implementation != "eager":
        return seen
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, torch.finfo(query.dtype).min)


class Dinov2SelfOutput(nn.Module):
    """Output projection of attention."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob if DROPOUT_AFTER_ATTENTION else 0.0)

    def forward(self, hidden_states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Project each token."""
        return self.dropout(self.dense(hidden_states))


class Dinov2Attention(nn.Module):
    """Self-attention with its output projection."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.attention = Dinov2SelfAttention(config)
        self.output = Dinov2SelfOutput(config)

    def forward(
        self, hidden_states: Float[Tensor, "B T D"], attention_mask: Mask = None, output_attentions: bool = False
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B A T T"] | None]:
        """Attended tokens, and the weights where they are asked for."""
        mixed, weights = self.attention(hidden_states, attention_mask, output_attentions)
        return self.output(mixed), weights


class Dinov2LayerScale(nn.Module):
    """One learned factor a channel."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), float(config.layerscale_value)))

    def forward(self, hidden_states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Scale channels."""
        return hidden_states * self.lambda1


class Dinov2DropPath(nn.Module):
    """Stochastic depth: in training a residual is left out for some images, and scaled up for the others.

    Differs: `opendino.layers.drop_path` leaves out a fixed number of images, as the official code does; this one
        draws for each image by itself, with the random numbers that transformers draws.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, residual: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The residual, or zero, for each image."""
        if self.rate == 0.0 or not self.training:
            return residual
        keep = 1 - self.rate
        kept = torch.floor(keep + torch.rand(residual.shape[0], 1, 1, dtype=residual.dtype, device=residual.device))
        return residual / keep * kept


class Dinov2MLP(nn.Module):
    """Plain feed-forward layer."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        hidden = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, hidden)
        self.activation = ACT2FN[config.hidden_act] if isinstance(config.hidden_act, str) else config.hidden_act
        self.fc2 = nn.Linear(hidden, config.hidden_size)

    def forward(self, hidden_states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Transform each token by itself."""
        return self.fc2(self.activation(self.fc1(hidden_states)))


class Dinov2SwiGLUFFN(nn.Module):
    """Gated feed-forward layer: silu of the first half times the second."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        hidden = swiglu_hidden_dim(int(config.hidden_size * config.mlp_ratio))
        self.weights_in = nn.Linear(config.hidden_size, 2 * hidden)
        self.weights_out = nn.Linear(hidden, config.hidden_size)

    def forward(self, hidden_states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Transform each token by itself."""
        gate, value = self.weights_in(hidden_states).chunk(2, dim=-1)
        return self.weights_out(F.silu(gate) * value)


class Dinov2Layer(GradientCheckpointingLayer):
    """One block: attention and feed-forward layer, each behind a norm and scaled onto a residual."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Dinov2Attention(config)
        self.layer_scale1 = Dinov2LayerScale(config)
        self.drop_path = Dinov2DropPath(config.drop_path_rate)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Dinov2SwiGLUFFN(config) if config.use_swiglu_ffn else Dinov2MLP(config)
        self.layer_scale2 = Dinov2LayerScale(config)

    def forward(
        self, hidden_states: Float[Tensor, "B T D"], attention_mask: Mask = None, output_attentions: bool = False
    ) -> Float[Tensor, "B T D"] | tuple[Float[Tensor, "B T D"], Float[Tensor, "B A T T"]]:
        """Tokens after the block; with `output_attentions` a pair of them and attention's weights."""
        mixed, weights = self.attention(self.norm1(hidden_states), attention_mask, output_attentions)
        hidden_states = hidden_states + self.drop_path(self.layer_scale1(mixed))
        hidden_states = hidden_states + self.drop_path(self.layer_scale2(self.mlp(self.norm2(hidden_states))))
        return (hidden_states, weights) if output_attentions else hidden_states


class Dinov2Encoder(nn.Module):
    """All blocks in their order."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Dinov2Layer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        hidden_states: Float[Tensor, "B T D"],
        attention_mask: Mask = None,
        output_attentions: bool = False,
        keep: Collection[int] = (),
    ) -> tuple[Float[Tensor, "B T D"], dict[int, Float[Tensor, "B T D"]], tuple[Float[Tensor, "B A T T"], ...]]:
        """Run all blocks.

        Args:
            hidden_states: tokens.
            attention_mask: see `mask_for`.
            output_attentions: whether attention's weights are wanted.
            keep: numbers of the states to hold; 0 is before the first block, i after the i-th.

        Returns:
            Tokens after the last block; the states held, by number; attention's weights, block by block.
        """
        states, attentions = {0: hidden_states} if 0 in keep else {}, []
        for i, layer in enumerate(self.layer, start=1):
            out = layer(hidden_states, attention_mask, output_attentions)
            hidden_states = out[0] if output_attentions else out
            if i in keep:
                states[i] = hidden_states
            if output_attentions:
                attentions.append(out[1])
        return hidden_states, states, tuple(attentions)
