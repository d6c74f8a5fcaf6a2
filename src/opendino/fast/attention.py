# SPDX-License-Identifier: Apache-2.0
"""Attention for inference, by whichever way is the faster one for the device and the type; used by `block.py`."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from opendino.onednn import seconds_of

SCORES_AT_ONCE = 2**20
"""Attention scores that are held at a time where the products are written out: two megabytes, about a core's cache."""

_FEWEST_ROWS = 32
_TRIAL_TOKENS = 1024
_CLOSE, _NOISE = 5e-2, 1.1  # as in `onednn.py`


def attend(
    q: Float[Tensor, "B t D"],
    k: Float[Tensor, "B T D"],
    v: Float[Tensor, "B T D"],
    heads: int,
    bias: Tensor | None = None,
    *,
    trial: bool = False,
) -> Float[Tensor, "B t D"]:
    """softmax(q k^T + bias) v within each image; the queries are scaled already.

    Float32 and other devices take PyTorch's fused kernel, which no other way was faster than. Bfloat16 on a CPU is
    written out, or takes the way that a trial finds the faster one on this machine.

    Args:
        q: queries of all heads, of every token or of the first ones.
        k: keys.
        v: values.
        heads: number of heads A.
        bias: added to the scores, or true where a token may be seen; anything that fits [B, A, t, T].
        trial: for bfloat16 on a CPU look once which way is the faster one for so many tokens.
    """
    B, t, D = q.shape
    T, d = k.shape[1], D // heads
    of_keys = bias is None or (bias.shape == (B, 1, 1, T) and bias.dtype != torch.bool)
    may_be_written = of_keys and q.device.type == "cpu" and q.dtype == torch.bfloat16
    if may_be_written and (t < T or not trial or written_out_pays(T, heads, d)):  # of few queries always faster
        return _in_parts(q, k, v, heads, None if bias is None else bias.flatten(1))
    return _fused(q, k, v, heads, bias)


def written_out_pays(tokens: int, heads: int, width: int) -> bool:
    """Whether attention in bfloat16 on this CPU is right, and not slower, with its products written out.

    One trial for all from 32, 64, ..., 1,024 tokens on: images of many sizes must not pay for one each.

    Args:
        tokens: of an image.
        heads: of a layer.
        width: of a head.
    """
    return _trial(min(max(1 << tokens.bit_length() - 1, _FEWEST_ROWS), _TRIAL_TOKENS), heads, width)


@lru_cache(maxsize=256)
def _trial(tokens: int, heads: int, width: int) -> bool:
    images = max(_TRIAL_TOKENS // tokens, 1)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        qkv = torch.randn(images, tokens, 3 * heads * width, generator=torch.Generator().manual_seed(0))
        q, k, v = qkv.bfloat16().chunk(3, dim=-1)
        q = q * width**-0.5
        ways = (lambda: _in_parts(q, k, v, heads, None), lambda: _fused(q, k, v, heads, None))
        written, fused = (way().float() for way in ways)
        if not (written - fused).abs().max() <= _CLOSE * fused.abs().max():
            return False
        new, old = seconds_of(ways)
        return new < _NOISE * old


def _fused(
    q: Float[Tensor, "B t D"], k: Float[Tensor, "B T D"], v: Float[Tensor, "B T D"], heads: int, bias: Tensor | None
) -> Float[Tensor, "B t D"]:
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    return mixed.transpose(1, 2).flatten(2)


def weights(
    q: Float[Tensor, "B t D"], k: Float[Tensor, "B T D"], heads: int, bias: Tensor | None = None
) -> Float[Tensor, "B A t T"]:
    """softmax(q k^T + bias) itself, for those who want to see it."""
    q, k = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k))
    scores = q @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    return scores.softmax(dim=-1)


def _in_parts(
    q: Float[Tensor, "B t D"],
    k: Float[Tensor, "B T D"],
    v: Float[Tensor, "B T D"],
    heads: int,
    bias: Float[Tensor, "B T"] | None,
) -> Float[Tensor, "B t D"]:
    """A few images at a time; or a few heads of one image, or queries of one head, where images are large.

    Args:
        q: as `attend`.
        k: as `attend`.
        v: as `attend`.
        heads: as `attend`.
        bias: of each key, for all heads and queries.
    """
    B, t, D = q.shape
    T, d = k.shape[1], D // heads
    together = max(SCORES_AT_ONCE // (t * T), 1)
    images, rows = max(together // heads, 1), min(max(SCORES_AT_ONCE // T, _FEWEST_ROWS), t)
    out = q.new_empty(B, t, heads, d)
    for first in range(0, B, images):
        these_images = slice(first, min(first + images, B))
        n = these_images.stop - first
        at_once = heads if n > 1 else min(together, heads)
        for some in (slice(head, min(head + at_once, heads)) for head in range(0, heads, at_once)):
            queries, keys, values = (_by_head(part[these_images], heads, some) for part in (q, k, v))
            of_keys = None if bias is None else bias[these_images].repeat_interleave(len(queries) // n, dim=0)[:, None]
            for these in (slice(row, row + rows) for row in range(0, t, rows)):
                scores = torch.bmm(queries[:, these], keys.transpose(1, 2))
                if of_keys is not None:
                    scores += of_keys
                # what is mixed takes the place of the queries, which nobody needs any more
                queries[:, these] = torch.bmm(torch.softmax(scores, dim=-1, out=scores), values)
            out[these_images, :, some].copy_(queries.view(n, -1, t, d).transpose(1, 2))
    return out.view(B, t, D)


def _by_head(part: Float[Tensor, "B T D"], heads: int, some: slice) -> Float[Tensor, "Bn T d"]:
    """A copy of some heads with the tokens of a head side by side."""
    split = part.unflatten(-1, (heads, -1))[:, :, some].transpose(1, 2)
    return split.clone(memory_format=torch.contiguous_format).flatten(0, 1)
