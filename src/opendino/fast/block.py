# SPDX-License-Identifier: Apache-2.0
"""A transformer block for inference: LayerScale inside the weights, few images at a time; `optimize.py` builds it.

Tokens and norms stay in float32 whatever the type of the products, so that bfloat16 rounds only what a branch adds.
In 8-bit integers are the layers whose inputs a norm or GELU has brought into a range; attention is bfloat16 then.
"""

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from opendino import onednn
from opendino.fast.attention import attend, weights
from opendino.layers.block import Block
from opendino.layers.fast_linear import FastLinear
from opendino.layers.int8_linear import GELU_FLOOR, Int8Linear
from opendino.layers.layer_scale import LayerScale
from opendino.layers.mlp import Mlp
from opendino.layers.packed_linear import PackedLinear
from opendino.layers.packing import Groups, unpack
from opendino.layers.swiglu import SwiGLU

TOKENS_AT_ONCE = 2048
"""Tokens that go through a block together on a CPU: what is between its layers then stays in the cache."""

TOKENS_FED = 512
"""Tokens of a large image that are fed forward together, at least, and less than twice as many: the hidden layer of
all of them would be the most that an image takes."""


class Products(NamedTuple):
    """How a fast copy multiplies.

    Attributes:
        dtype: float32 or bfloat16.
        packed: by oneDNN with packed weights; None asks a trial of each shape.
        int8: linear layers behind a norm and the last one of an MLP in 8-bit integers; the rest in `dtype`.
    """

    dtype: torch.dtype
    packed: bool | None = None
    int8: bool = False


@dataclass(frozen=True)
class BlockParts:
    """A block's weights, whoever named them.

    Attributes:
        norm1: before attention.
        heads: attention heads.
        qkv: fused projection.
        proj: output projection.
        scale1: LayerScale behind attention, or None.
        norm2: before the feed-forward layer.
        kind: of the feed-forward layer.
        first: its first layer; for "swiglu" gate and value, in this order; None for "identity".
        second: its last layer.
        scale2: LayerScale behind it, or None.
    """

    norm1: nn.LayerNorm
    heads: int
    qkv: nn.Linear
    proj: nn.Linear
    scale1: Tensor | None
    norm2: nn.LayerNorm
    kind: Literal["mlp", "swiglu", "identity"]
    first: nn.Linear | None
    second: nn.Linear | None
    scale2: Tensor | None

    def plain(self) -> bool:
        """Whether all layers are what they seem, so that their weights say all of them."""
        linear = [one for one in (self.qkv, self.proj, self.first, self.second) if one is not None]
        return all(type(one) in (nn.Linear, FastLinear) for one in linear) and all(
            type(one) is nn.LayerNorm for one in (self.norm1, self.norm2)
        )


class FastBlock(nn.Module):
    """What a block says in evaluation mode, from a copy of its weights.

    Args:
        parts: weights.
        products: how to multiply.
        last: whether queries have a layer of their own, which `first_tokens` then asks for no more than it needs.
    """

    def __init__(self, parts: BlockParts, products: Products, *, last: bool = False) -> None:
        super().__init__()
        self.dtype, self.heads, self.trial = products.dtype, parts.heads, products.packed is None
        self.enters = torch.float32 if products.int8 else products.dtype  # 8-bit layers do their own rounding
        self.norm1, self.norm2 = _norm(parts.norm1), _norm(parts.norm2)
        D, scale = parts.qkv.in_features, _query_scale(parts)
        layers = (slice(D), slice(D, 3 * D)) if last else (slice(3 * D),)
        self.qkv = nn.ModuleList(_fold(_outputs(parts.qkv, some), scale[some], products) for some in layers)
        # as wide as deep, the layer costs in 8 bits what it gains
        self.proj = _fold(parts.proj, parts.scale1, products._replace(int8=False))
        self.feed = _feed_forward(parts, products)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "*tokens D"], groups: Groups | None = None) -> Float32[Tensor, "*tokens D"]:
        """Run the block.

        Args:
            x: tokens [B, T, D]; or, with `groups`, packed tokens [sum of B * T, D].
            groups: (B, T) of each packed group; None when `x` is one batch.
        """
        if groups is not None:
            return torch.cat([self(part).flatten(0, 1) for part in unpack(x, groups)])
        with torch.autocast(x.device.type, enabled=False):
            return self._few_at_a_time(x.float())

    @torch.no_grad()
    def first_tokens(self, x: Float[Tensor, "B T D"], n: int) -> Float32[Tensor, "B n D"]:
        """The first `n` tokens of `self(x)`: of the others keys and values alone, if the block was made as `last`."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            mixed = [self._mixed(part, n) for part in x.split(images_at_once(x))]
            return self._finished(x[:, :n], mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    def _few_at_a_time(self, x: Float32[Tensor, "B T D"]) -> Float32[Tensor, "B T D"]:
        at_once = images_at_once(x)
        if len(x) <= at_once:
            return self.run(x)
        out = torch.empty_like(x)
        for part, into in zip(x.split(at_once), out.split(at_once), strict=True):
            into.copy_(self.run(part))
        return out

    def run(self, x: Float32[Tensor, "B T D"], bias: Tensor | None = None) -> Float32[Tensor, "B T D"]:
        """The block on tokens that fit the cache; `bias` is that of `attend`."""
        return self._finished(x, self._mixed(x, None, bias))

    def project(
        self, x: Float32[Tensor, "B T D"], n: int | None = None
    ) -> tuple[Float[Tensor, "B t D"], Float[Tensor, "B T D"], Float[Tensor, "B T D"]]:
        """Queries of the first `n` tokens, or of all, and all keys and values."""
        normed = self.norm1(x).to(self.enters)
        if len(self.qkv) == 1:
            q, k, v = self.qkv[0](normed).chunk(3, dim=-1)
            return q[:, :n], k, v
        return self.qkv[0](normed[:, :n]), *self.qkv[1](normed).chunk(2, dim=-1)

    def _mixed(
        self, x: Float32[Tensor, "B T D"], n: int | None = None, bias: Tensor | None = None
    ) -> Float[Tensor, "B t D"]:
        return attend(*self.project(x, n), self.heads, bias, trial=self.trial)

    def _finished(self, x: Float32[Tensor, "B t D"], mixed: Float[Tensor, "B t D"]) -> Float32[Tensor, "B t D"]:
        """What is behind attention."""
        x = x + self.proj(mixed)
        del mixed  # what is as wide as the tokens is not to lie beside the feed-forward layer's
        for part in x.tensor_split(max(x.shape[1] // TOKENS_FED, 1), dim=1):
            part += self.feed(self.norm2(part).to(self.enters))
        return x

    def attention_weights(self, x: Float[Tensor, "B T D"], bias: Tensor | None = None) -> Float[Tensor, "B A T T"]:
        """Attention's weights on tokens before the block."""
        q, k, _ = self.project(x.float())
        return weights(q, k, self.heads, bias)


def images_at_once(x: Float[Tensor, "B T D"]) -> int:
    """Images that go through a block together: parts of a batch are of nearly the same size."""
    if x.device.type != "cpu" or not len(x):
        return max(len(x), 1)
    parts = -(-len(x) // max(TOKENS_AT_ONCE // x.shape[1], 1))
    return -(-len(x) // parts)


class _Gated(nn.Module):
    """`second(silu(gate) * value)`."""

    def __init__(self, gate: nn.Module, value: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.gate, self.value, self.second = gate, value, second

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """Transform each token by itself."""
        return self.second(self.gate(x).mul_(self.value(x)))


class _Scaled(nn.Module):
    """No feed-forward layer, but its LayerScale where there is one."""

    def __init__(self, scale: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("scale", None if scale is None else scale.detach().float().clone())

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        """Scale channels."""
        return x if self.scale is None else x * self.scale


def parts_of(block: nn.Module) -> BlockParts | None:
    """Weights of our own block; None where it holds layers that are not its own, such as LoRA's."""
    if not isinstance(block, Block):
        return None
    scales = [scale.gamma if isinstance(scale, LayerScale) else None for scale in (block.ls1, block.ls2)]
    attn, mlp = block.attn, block.mlp
    kind, first, second = "identity", None, None
    if isinstance(mlp, Mlp):
        kind, first, second = "mlp", mlp.fc1, mlp.fc2
    elif isinstance(mlp, SwiGLU):
        kind, first, second = "swiglu", mlp.w12, mlp.w3
    parts = BlockParts(
        block.norm1, attn.num_heads, attn.qkv, attn.proj, scales[0], block.norm2, kind, first, second, scales[1]
    )
    return parts if parts.plain() else None


def _norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    return copy.deepcopy(norm).float().requires_grad_(False)


def _query_scale(parts: BlockParts) -> Float32[Tensor, " D3"]:
    """One over the root of a head's width for the queries, one for keys and values."""
    D = parts.qkv.in_features
    scale = torch.ones(3 * D, device=parts.qkv.weight.device)
    scale[:D] = (D // parts.heads) ** -0.5
    return scale


def _fold(
    layer: nn.Linear,
    scale: Tensor | None,
    products: Products,
    activation: onednn.Activation = "none",
    floor: float | None = None,
) -> PackedLinear | Int8Linear:
    """A layer whose outputs are scaled channel by channel; `floor` is that of `Int8Linear`."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if scale is not None:
        scale = scale.detach().float()
        weight = weight.float() * scale[:, None]
        bias = None if bias is None else bias.float() * scale
    if products.int8:
        return Int8Linear(weight, bias, activation=activation, floor=floor)
    return PackedLinear(weight, bias, products.dtype, activation=activation, packed=products.packed)


def _feed_forward(parts: BlockParts, products: Products) -> nn.Module:
    if parts.first is None or parts.second is None:
        return _Scaled(parts.scale2)
    second = _fold(parts.second, parts.scale2, products, floor=GELU_FLOOR if parts.kind == "mlp" else None)
    if parts.kind == "mlp":
        return nn.Sequential(_fold(parts.first, None, products, "gelu"), second)
    wide = parts.first.out_features // 2
    gate, value = (_outputs(parts.first, some) for some in (slice(wide), slice(wide, 2 * wide)))
    return _Gated(_fold(gate, None, products, "silu"), _fold(value, None, products), second)


def _outputs(layer: nn.Linear, some: slice) -> nn.Linear:
    """A layer that gives some of the outputs, on the same memory."""
    part = nn.Linear(layer.in_features, some.stop - (some.start or 0), bias=layer.bias is not None, device="meta")
    for name, whole in layer.named_parameters():
        setattr(part, name, nn.Parameter(whole.detach()[some], requires_grad=False))
    return part
