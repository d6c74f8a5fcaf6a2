# SPDX-License-Identifier: Apache-2.0
"""Multi-head self-attention over one batch, or over several crop groups packed together; read `block.py` next."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opendino.errors import ModelError
from opendino.layers.followed import is_followed
from opendino.layers.packing import Groups, pack, unpack
from opendino.onednn import seconds_of

Way = Literal["auto", "fused", "written"]
"""How bfloat16 is mixed on a CPU: by PyTorch's fused kernel, or by its products written out, which "auto" is too."""

_TRIED: tuple[Way, ...] = ("fused", "written")
_CLOSE = 0.02  # of their norm, to results and gradients of float32
_CLEARLY = 1.2
_SCORES, _TOKENS = 2**19, 512  # of a trial at most, where a single image or head has no more


class Attention(nn.Module):
    """Self-attention with one fused projection to queries, keys and values.

    Args:
        dim: width D of the tokens.
        num_heads: heads A; D must be a multiple of it.
        qkv_bias: whether the fused projection has a bias.
        proj_bias: whether the output projection has a bias.

    Attributes:
        way: of bfloat16 on a CPU, see `use_attention`; anything else is PyTorch's fused kernel's.

    Source: official `layers/attention.py`; keys `qkv`, `proj`; scale 1/sqrt(D/A).
    Differs: no attention or projection dropout, which every published recipe sets to zero.
    """

    way: Way = "auto"

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, proj_bias: bool = True) -> None:
        super().__init__()
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ModelError(
                f"Attention: width {dim} cannot be split into {num_heads} heads; "
                "choose a number of heads that divides the width (published models: width / 64)"
            )
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)

    def forward(
        self,
        x: Float[Tensor, "*tokens D"],
        groups: Groups | None = None,
        places: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "*out D"]:
        """Attend within each image.

        Args:
            x: tokens [B, T, D]; or, with `groups`, packed tokens [sum of B * T, D].
            groups: (B, T) of each packed group; None when `x` is one batch.
            places: which packed tokens are wanted, [n, D], so that no others are projected; None for all.
        """
        qkv = self.qkv(x)
        if groups is None:
            return self.proj(self._attend(qkv))
        parts = [self._attend(part).flatten(0, 1) for part in unpack(qkv, groups)]
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.proj(mixed if places is None else mixed.index_select(0, places))

    def forward_list(self, xs: Sequence[Float[Tensor, "_ _ D"]]) -> list[Float[Tensor, "_ _ D"]]:
        """Attend within each image of several groups; projections run once over all of them."""
        packed, groups = pack(xs)
        return unpack(self(packed, groups), groups)

    def first_tokens(self, x: Float[Tensor, "B T D"], n: int) -> Float[Tensor, "B n D"]:
        """The first `n` tokens of `self(x)`: of the others keys and values alone. For a plain linear layer as `qkv`."""
        D, weight, bias = self.qkv.in_features, self.qkv.weight, self.qkv.bias
        of_queries, of_rest = (None, None) if bias is None else (bias[:D], bias[D:])
        first = x[:, :n].contiguous()  # what is not is multiplied, and rounded, in two ways, by who asks for gradients
        q = F.linear(first, weight[:D], of_queries).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        # [B, T, 2 D] -> 2 x [B, A, T, D/A]
        both = F.linear(x, weight[D:], of_rest).unflatten(-1, (2, self.num_heads, -1))
        k, v = both.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(_mix(q, k, v, _is_written(q, self.way)).transpose(1, 2).flatten(2))

    def _attend(self, qkv: Float[Tensor, "B T D3"]) -> Float[Tensor, "B T D"]:
        return _attend(qkv, self.num_heads, self.way)


def use_attention(module: nn.Module, way: Way) -> int:
    """Have all attention in a module mix bfloat16 on a CPU in one way.

    Args:
        module: changed in place.
        way: "written" is what a layer does by itself ("auto"), for training was faster with it wherever it was tried;
            `faster_way` asks the machine at hand.

    Returns:
        How many layers there are.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, Attention)]
    for layer in layers:
        layer.way = way
    return len(layers)


def faster_way(shapes: Sequence[tuple[int, int]], heads: int, width: int) -> tuple[Way, float]:
    """Which way trains faster in bfloat16 on this CPU, by a short trial of both in turn, with the backward pass.

    Args:
        shapes: images and tokens of each group of crops; of many, few are tried and the time of all is worked out.
        heads: of the layers.
        width: of a head.

    Returns:
        "fused" where it is faster by a fifth, else "written", so that chance hardly ever decides; and the time of the
        written-out way over the fused one's, infinite where the written-out way strays from float32 by more than 2 %.
    """
    generator, seconds = torch.Generator().manual_seed(0), [0.0, 0.0]
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for images, tokens in shapes:
            some_heads = min(heads, max(_SCORES // tokens**2, 1))
            some = min(images, max(min(_SCORES // (tokens**2 * some_heads), _TOKENS // tokens), 1))
            exact = torch.randn(some, tokens, 3 * some_heads * width, generator=generator)
            qkv, wanted = exact.bfloat16(), _both_passes(exact, some_heads, "fused")
            for found, truth in zip(_both_passes(qkv, some_heads, "written"), wanted, strict=True):
                if not (found.float() - truth).norm() <= _CLOSE * truth.norm():
                    return "fused", float("inf")
            ways = [partial(_both_passes, qkv, some_heads, way) for way in _TRIED]
            whole = images * heads / (some * some_heads)
            seconds = [one + whole * taken for one, taken in zip(seconds, seconds_of(ways, rounds=3), strict=True)]
    ratio = seconds[1] / max(seconds[0], 1e-9)
    return ("written" if ratio < _CLEARLY else "fused"), ratio


def _both_passes(qkv: Float[Tensor, "B T D3"], heads: int, way: Way) -> tuple[Tensor, Tensor]:
    """What attention gives, and its gradient."""
    qkv = qkv.detach().requires_grad_()
    mixed = _attend(qkv, heads, way)
    return mixed.detach(), torch.autograd.grad(mixed, qkv, mixed.detach())[0]


def _attend(qkv: Float[Tensor, "B T D3"], heads: int, way: Way) -> Float[Tensor, "B T D"]:
    """softmax(q k^T / sqrt(d)) v of each head."""
    written = _is_written(qkv, way)
    if written and not is_followed():
        return _written_out(qkv, heads)
    B, T, D3 = qkv.shape
    # [B, T, 3 D] -> 3 x [B, A, T, D/A]
    q, k, v = qkv.view(B, T, 3, heads, D3 // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return _mix(q, k, v, written).transpose(1, 2).reshape(B, T, D3 // 3)


def _is_written(tokens: Tensor, way: Way) -> bool:
    return way != "fused" and tokens.device.type == "cpu" and tokens.dtype == torch.bfloat16


def _mix(
    q: Float[Tensor, "B A n d"], k: Float[Tensor, "B A T d"], v: Float[Tensor, "B A T d"], written: bool
) -> Float[Tensor, "B A n d"]:
    if written:
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def _written_out(qkv: Float[Tensor, "B T D3"], heads: int) -> Float[Tensor, "B T D"]:
    return _WrittenOut.apply(qkv, heads)[0]


class _WrittenOut(torch.autograd.Function):
    """The products and the softmax between them, with their gradient, each tensor laid side by side only once.

    Besides the tokens it gives queries, keys and values as they are kept: where the gradient is itself to be
    differentiated, theirs goes by way of them.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  torch's own
        qkv: Float[Tensor, "B T D3"],
        heads: int,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "3 BA T d"]]:
        B, T, D3 = qkv.shape
        parts = qkv.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format)
        parts = parts.flatten(1, 2)
        q, k, v = parts
        q.mul_(q.shape[-1] ** -0.5)
        scores = torch.bmm(q, k.transpose(1, 2))
        shares = scores.softmax(dim=-1)  # not in their place: recomputation may keep what a product gave
        ctx.save_for_backward(parts, shares)
        ctx.set_materialize_grads(False)
        ctx.heads = heads
        return torch.bmm(shares, v).view(B, heads, T, -1).transpose(1, 2).reshape(B, T, D3 // 3), parts

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # pyrefly: ignore[bad-override]
        grad, of_kept = grad_outputs
        parts, shares = ctx.saved_tensors
        _, rows, T, d = parts.shape
        slopes = []
        if grad is not None:
            grad = grad.unflatten(-1, (ctx.heads, -1)).transpose(1, 2).reshape(rows, T, d)
            slopes.append((_slopes_with_graph if torch.is_grad_enabled() else _slopes)(parts, shares, grad))
        if of_kept is not None:  # of the second order; queries were scaled before they were kept
            slopes.append(torch.cat([of_kept[:1] * d**-0.5, of_kept[1:]]))
        if not slopes:
            return None, None
        of_parts = slopes[0] if len(slopes) == 1 else slopes[0] + slopes[1]
        of_parts = of_parts.view(3, -1, ctx.heads, T, d).permute(1, 3, 0, 2, 4)
        return of_parts.reshape(-1, T, 3 * ctx.heads * d), None


def _slopes(
    parts: Float[Tensor, "3 BA T d"], shares: Float[Tensor, "BA T T"], grad: Float[Tensor, "BA T d"]
) -> Float[Tensor, "3 BA T d"]:
    """Gradients of queries (before their scale), keys and values, from that of what is mixed."""
    q, k, v = parts
    of_parts = torch.empty_like(parts)
    of_q, of_k, of_v = of_parts
    torch.bmm(shares.transpose(1, 2), grad, out=of_v)
    slope = torch.bmm(grad, v.transpose(1, 2))
    # shares * (slope - sum of shares * slope), in one pass
    slope = torch._softmax_backward_data(slope, shares, -1, shares.dtype)
    torch.bmm(slope, k, out=of_q).mul_(q.shape[-1] ** -0.5)
    torch.bmm(slope.transpose(1, 2), q, out=of_k)
    return of_parts


def _slopes_with_graph(
    parts: Float[Tensor, "3 BA T d"], _: Tensor, grad: Float[Tensor, "BA T d"]
) -> Float[Tensor, "3 BA T d"]:
    """`_slopes` by operations that can be differentiated."""
    q, k, v = parts.unbind(0)
    shares = (q @ k.transpose(1, 2)).softmax(dim=-1)
    slope = grad @ v.transpose(1, 2)
    slope = shares * (slope - (shares * slope).sum(dim=-1, keepdim=True))
    return torch.stack([slope @ k * q.shape[-1] ** -0.5, slope.transpose(1, 2) @ q, shares.transpose(1, 2) @ grad])
