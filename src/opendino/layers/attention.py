# SPDX-License-Identifier: Apache-2.0
"""Multi-head self-attention over one batch, or over several crop groups packed together; read `block.py` next."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opendino.errors import ModelError
from opendino.layers.packing import Groups, pack, unpack


class Attention(nn.Module):
    """Self-attention with one fused projection to queries, keys and values.

    Args:
        dim: width D of the tokens.
        num_heads: heads A; D must be a multiple of it.
        qkv_bias: whether the fused projection has a bias.
        proj_bias: whether the output projection has a bias.

    Source: official `layers/attention.py`; keys `qkv`, `proj`; scale 1/sqrt(D/A).
    Differs: no attention or projection dropout, which every published recipe sets to zero.
    """

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

    def forward(self, x: Float[Tensor, "*tokens D"], groups: Groups | None = None) -> Float[Tensor, "*tokens D"]:
        """Attend within each image.

        Args:
            x: tokens [B, T, D]; or, with `groups`, packed tokens [sum of B * T, D].
            groups: (B, T) of each packed group; None when `x` is one batch.
        """
        qkv = self.qkv(x)
        if groups is None:
            return self.proj(self._attend(qkv))
        mixed = [self._attend(part).flatten(0, 1) for part in unpack(qkv, groups)]
        return self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    def forward_list(self, xs: Sequence[Float[Tensor, "_ _ D"]]) -> list[Float[Tensor, "_ _ D"]]:
        """Attend within each image of several groups; projections run once over all of them."""
        packed, groups = pack(xs)
        return unpack(self(packed, groups), groups)

    def first_tokens(self, x: Float[Tensor, "B T D"], n: int) -> Float[Tensor, "B n D"]:
        """The first `n` tokens of `self(x)`: of the others keys and values alone. For a plain linear layer as `qkv`."""
        D, weight, bias = self.qkv.in_features, self.qkv.weight, self.qkv.bias
        of_queries, of_rest = (None, None) if bias is None else (bias[:D], bias[D:])
        q = F.linear(x[:, :n], weight[:D], of_queries).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        # [B, T, 2 D] -> 2 x [B, A, T, D/A]
        both = F.linear(x, weight[D:], of_rest).unflatten(-1, (2, self.num_heads, -1))
        k, v = both.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _attend(self, qkv: Float[Tensor, "B T D3"]) -> Float[Tensor, "B T D"]:
        B, T, D3 = qkv.shape
        # [B, T, 3 D] -> 3 x [B, A, T, D/A]
        q, k, v = qkv.view(B, T, 3, self.num_heads, D3 // (3 * self.num_heads)).permute(2, 0, 3, 1, 4).unbind(0)
        return _mix_values(q, k, v).transpose(1, 2).reshape(B, T, D3 // 3)


def _mix_values(
    q: Float[Tensor, "B A T d"], k: Float[Tensor, "B A T d"], v: Float[Tensor, "B A T d"]
) -> Float[Tensor, "B A T d"]:
    """softmax(q k^T / sqrt(d)) v, by whichever of PyTorch's ways is the faster one for this device and dtype."""
    # Fused, bfloat16 on a CPU takes 0.9 to 1.8 times as long, backward 1.5 to 5 times (benchmarks/attention.py).
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return scores.softmax(dim=-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)
