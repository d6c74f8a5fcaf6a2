# SPDX-License-Identifier: Apache-2.0
"""Token merging: patches that look alike go on as one, and are given back to all their places; used by `optimize.py`.

Source: Bolya et al. 2023, Token Merging: Your ViT But Faster, sections 3 and 4.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from opendino.fast.attention import attend
from opendino.fast.block import FastBlock, images_at_once


def merged_blocks(
    blocks: Iterable[FastBlock],
    tokens: Float[Tensor, "B T D"],
    wanted: set[int],
    *,
    share: float,
    protected: int,
    first: int | None = None,
) -> list[Float[Tensor, "B _ D"]]:
    """Tokens after each of the wanted blocks, with fewer and fewer of them on the way.

    Args:
        blocks: all of the backbone.
        tokens: before the first.
        wanted: numbers of blocks, counted from 0.
        share: of an image's patches that each block lets go, at most half of those it is given.
        protected: leading tokens that stay alone: CLS and registers.
        first: how many of those are wanted; None for all tokens.

    Returns:
        All T tokens each time, or the first ones; those that went on as one are equal.
    """
    few = round(share * (tokens.shape[1] - protected))
    taken: list[list[Tensor]] = []
    for part in tokens.float().split(images_at_once(tokens)):
        taken.append([])
        merged = Merged(part, protected)
        for i, block in enumerate(blocks):
            if first is not None and i == max(wanted):
                taken[-1].append(leading(block, merged, first))
                break
            run_block(block, merged, few)
            if i in wanted:
                taken[-1].append(merged.restored()[:, :first])
            if i == max(wanted):
                break
    return [torch.cat(parts) for parts in zip(*taken, strict=True)]


def run_block(block: FastBlock, merged: "Merged", few: int) -> None:
    """One block on what is left of the tokens, letting go of `few` between attention and the feed-forward layer."""
    q, k, v = block.project(merged.tokens)
    merged.tokens = merged.tokens + block.proj(attend(q, k, v, block.heads, merged.bias(q.dtype)))
    if few:
        merged.let_go(k.unflatten(-1, (block.heads, -1)).float().mean(dim=2), few)
    merged.tokens += block.feed(block.norm2(merged.tokens).to(block.enters))


def leading(block: FastBlock, merged: "Merged", first: int) -> Float32[Tensor, "B first D"]:
    """The first tokens of what `run_block` leaves, which merging leaves alone."""
    q, k, v = block.project(merged.tokens, first)
    x = merged.tokens[:, :first] + block.proj(attend(q, k, v, block.heads, merged.bias(q.dtype)))
    return x + block.feed(block.norm2(x).to(block.enters))


class Merged:
    """Tokens, what they stand for, and where they came from.

    Args:
        tokens: one for each place.
        protected: leading ones that stay alone.

    Attributes:
        tokens: [B, t, D] what is left.
        sizes: [B, t] how many of the first tokens each stands for.
        places: [B, T] the token that stands for each place.
    """

    def __init__(self, tokens: Float32[Tensor, "B T D"], protected: int) -> None:
        B, T, _ = tokens.shape
        self.tokens, self.protected = tokens, protected
        self.sizes: Float32[Tensor, "B t"] = tokens.new_ones(B, T)
        self.places: Int64[Tensor, "B T"] = torch.arange(T, device=tokens.device).expand(B, T)

    def bias(self, dtype: torch.dtype) -> Float[Tensor, "B 1 1 t"]:
        """Of the keys: a token that stands for s patches is looked at s times."""
        return self.sizes.log().to(dtype)[:, None, None]

    def let_go(self, keys: Float32[Tensor, "B t d"], few: int) -> None:
        """Merge tokens of every other place into the most similar one of the places between: the `few` most similar.

        Args:
            keys: by whose cosine tokens are alike.
            few: at most; at most all of every other place.
        """
        gone, into = _alike(F.normalize(keys[:, self.protected :], dim=-1), few)
        gone, into = gone + self.protected, into + self.protected
        B, t, D = self.tokens.shape
        weighted = self.tokens * self.sizes[..., None]
        wide = (B, gone.shape[1], D)
        weighted.scatter_add_(1, into[..., None].expand(wide), weighted.gather(1, gone[..., None].expand(wide)))
        self.sizes = self.sizes.scatter_add(1, into, self.sizes.gather(1, gone))
        kept = torch.ones(B, t, dtype=torch.bool, device=gone.device).scatter_(1, gone, False)
        now = kept.cumsum(1) - 1
        now = now.scatter(1, gone, now.gather(1, into))
        self.places = now.gather(1, self.places)
        self.tokens = (weighted / self.sizes[..., None])[kept].view(B, -1, D)
        self.sizes = self.sizes[kept].view(B, -1)

    def restored(self) -> Float32[Tensor, "B T D"]:
        """A token for each place."""
        wide = (*self.places.shape, self.tokens.shape[-1])
        return self.tokens.gather(1, self.places[..., None].expand(wide))


def _alike(keys: Float32[Tensor, "B n d"], few: int) -> tuple[Int64[Tensor, "B few"], Int64[Tensor, "B few"]]:
    """Places of the even tokens that resemble an odd one most, and that odd one's."""
    even, odd = keys[:, ::2], keys[:, 1::2]
    if not odd.shape[1]:
        nothing = torch.empty(len(keys), 0, dtype=torch.int64, device=keys.device)
        return nothing, nothing
    best, where = (even @ odd.transpose(1, 2)).max(dim=-1)
    chosen = best.topk(min(few, even.shape[1]), dim=-1).indices
    return 2 * chosen, 2 * where.gather(1, chosen) + 1
