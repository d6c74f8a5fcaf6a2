# SPDX-License-Identifier: Apache-2.0
"""Attention for inference, by whichever way is the faster one for the device and the type; used by `block.py`."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SCORES_AT_ONCE = 2**20
"""Attention scores that are held at a time where the products are written out: two megabytes, about a core's cache."""

_FEWEST_ROWS = 32


def attend(qkv: Float[Tensor, "B T D3"], heads: int, bias: Tensor | None = None) -> Float[Tensor, "B T D"]:
    """softmax(q k^T + bias) v within each image; the queries are scaled already.

    Args:
        qkv: queries, keys and values side by side, each of all heads.
        heads: number of heads A.
        bias: added to the scores, or true where a token may be seen; anything that fits [B, A, T, T].
    """
    B, T, D3 = qkv.shape
    # Fused, PyTorch's kernel takes 1.3 to 1.8 times as long in bfloat16 on a CPU (benchmarks/attention.py).
    of_keys = bias is None or (bias.shape == (B, 1, 1, T) and bias.dtype != torch.bool)
    if of_keys and qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16:
        return _in_parts(qkv, heads, None if bias is None else bias.flatten(1))
    q, k, v = qkv.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    return mixed.transpose(1, 2).reshape(B, T, D3 // 3)


def weights(qkv: Float[Tensor, "B T D3"], heads: int, bias: Tensor | None = None) -> Float[Tensor, "B A T T"]:
    """softmax(q k^T + bias) itself, for those who want to see it."""
    B, T, _ = qkv.shape
    q, k, _v = qkv.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    scores = q @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    return scores.softmax(dim=-1)


def _in_parts(qkv: Float[Tensor, "B T D3"], heads: int, bias: Float[Tensor, "B T"] | None) -> Float[Tensor, "B T D"]:
    """A few images at a time; or a few heads of one image, or queries of one head, where images are large.

    Args:
        qkv: as `attend`.
        heads: as `attend`.
        bias: of each key, for all heads and queries.
    """
    B, T, D3 = qkv.shape
    d = D3 // (3 * heads)
    together = max(SCORES_AT_ONCE // (T * T), 1)
    images, rows = max(together // heads, 1), min(max(SCORES_AT_ONCE // T, _FEWEST_ROWS), T)
    out = qkv.new_empty(B, T, heads, d)
    each = None if bias is None else bias.repeat_interleave(heads, dim=0)[:, None]  # of each head
    for first_image, part in zip(range(0, B, images), qkv.view(B, T, 3, heads, d).split(images), strict=True):
        n = len(part)
        of_part = None if each is None else each[first_image * heads :]
        q, keys, v = part.permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format).view(3, n * heads, T, d)
        step = n * heads if n > 1 else together
        for some in (slice(first, first + step) for first in range(0, n * heads, step)):
            for these in (slice(first, first + rows) for first in range(0, T, rows)):
                scores = torch.bmm(q[some, these], keys[some].transpose(1, 2))
                if of_part is not None:
                    scores += of_part[some]
                # what is mixed takes the place of the queries, which nobody needs any more
                q[some, these] = torch.bmm(torch.softmax(scores, dim=-1, out=scores), v[some])
        out[first_image : first_image + n].copy_(q.view(n, heads, T, d).transpose(1, 2))
    return out.view(B, T, heads * d)
