# SPDX-License-Identifier: Apache-2.0
"""One pre-norm transformer block; its parts are in the files it imports."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from opendino.errors import ModelError
from opendino.layers.attention import Attention
from opendino.layers.drop_path import draw, residual_on_subset
from opendino.layers.fast_linear import FastLinear
from opendino.layers.layer_scale import LayerScale
from opendino.layers.mlp import Mlp
from opendino.layers.packing import Groups, pack, places, unpack
from opendino.layers.swiglu import SwiGLU

NORM_EPS = 1e-6
FFN_LAYERS = ("mlp", "swiglu", "swiglufused", "identity")


class Block(nn.Module):
    """`x + ls1(attn(norm1(x)))`, then `x + ls2(mlp(norm2(x)))`.

    Args:
        dim: width D of the tokens.
        num_heads: attention heads.
        mlp_ratio: hidden width of the feed-forward layer over D.
        qkv_bias: bias of the fused query, key, value projection.
        proj_bias: bias of attention's output projection.
        ffn_bias: bias of the feed-forward layers.
        drop_path: share of images whose residual is left out in training, drawn separately for each branch.
        init_values: start of LayerScale; None or 0 leaves the layer and its key out.
        ffn_layer: "mlp", "swiglu" (or its official alias "swiglufused"), or "identity".

    Attributes:
        takes_wanted: whether it may be asked for `wanted` tokens, however many; not where it is compiled for one shape.

    Raises:
        ModelError: heads, feed-forward layer or drop rate that cannot be.

    Source: official `layers/block.py`; keys `norm1 attn ls1 norm2 mlp ls2`.
    """

    takes_wanted: bool = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        ffn_bias: bool = True,
        drop_path: float = 0.0,
        init_values: float | None = None,
        ffn_layer: str = "mlp",
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ModelError(f"Block: drop_path={drop_path} is not a share of the images; choose 0 or more, below 1")
        if int(dim * mlp_ratio) < 1:
            raise ModelError(f"Block: mlp_ratio={mlp_ratio} leaves no hidden width of {dim} channels; published is 4")
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, proj_bias=proj_bias)
        self.ls1 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = _feed_forward(ffn_layer, dim, int(dim * mlp_ratio), ffn_bias)
        self.ls2 = LayerScale(dim, init_values) if init_values else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "*tokens D"],
        groups: Groups | None = None,
        wanted: Sequence[Int[Tensor, " _"]] | None = None,
    ) -> Float[Tensor, "*out D"]:
        """Run the block.

        Args:
            x: tokens [B, T, D]; or, with `groups`, packed tokens [sum of B * T, D].
            groups: (B, T) of each packed group; None when `x` is one batch.
            wanted: of each group the tokens that come out, by their places in it, [sum of n, D]; the others are not
                projected and not fed forward. None for all.
        """
        dropping = self.training and self.drop_path > 0
        if wanted is None and not dropping:
            x = x + self._mix(x, groups)
            return x + self._feed(x)
        packed, groups = (x.flatten(0, 1), ((x.shape[0], x.shape[1]),)) if groups is None else (x, groups)
        if wanted is not None:
            return self._of_some(packed, groups, wanted, dropping)
        packed = residual_on_subset(packed, groups, self.drop_path, self._mix)
        return residual_on_subset(packed, groups, self.drop_path, self._feed).view_as(x)

    def forward_list(self, xs: Sequence[Float[Tensor, "_ _ D"]]) -> list[Float[Tensor, "_ _ D"]]:
        """Run the block on several crop groups in one packed pass."""
        packed, groups = pack(xs)
        return unpack(self(packed, groups), groups)

    def first_tokens(self, x: Float[Tensor, "B T D"], n: int) -> Float[Tensor, "B n D"]:
        """The first `n` tokens of `self(x)`: of the others only keys and values are computed.

        The whole block runs where more than its formula is asked for: where stochastic depth draws, where a hook
        listens, and where a layer of its attention is not its own, such as LoRA's.
        """
        if (self.training and self.drop_path > 0) or not _is_as_made(self):
            return self(x)[:, :n]
        first = x[:, :n] + self.ls1(self.attn.first_tokens(self.norm1(x), n))
        return first + self._feed(first)

    def _of_some(
        self, x: Float[Tensor, "packed D"], groups: Groups, wanted: Sequence[Int[Tensor, " _"]], dropping: bool
    ) -> Float[Tensor, "n D"]:
        """What `forward` gives at some places, from the same random numbers."""
        where = places(wanted, groups)
        some = x.index_select(0, where)
        if not dropping:
            some = some + self._mix(x, groups, where)
            return some + self._feed(some)
        drawn = draw(groups, self.drop_path, x.device)
        mixed = self._mix(x.index_select(0, drawn.positions()), drawn.kept_groups, drawn.places(wanted))
        some = some + mixed.to(x.dtype) * drawn.worth(wanted, x.dtype)
        drawn = draw(groups, self.drop_path, x.device)
        return some + self._feed(some).to(x.dtype) * drawn.worth(wanted, x.dtype)

    def _mix(self, x: Tensor, groups: Groups | None, *some: Tensor) -> Tensor:
        return self.ls1(self.attn(self.norm1(x), groups, *some))

    def _feed(self, x: Tensor, groups: Groups | None = None) -> Tensor:  # noqa: ARG002  same call as _mix
        return self.ls2(self.mlp(self.norm2(x)))


def takes_wanted(block: nn.Module) -> bool:
    """Whether a block may be asked for some tokens: it is one of ours, and neither it nor its attention are changed."""
    ours = isinstance(block, Block) and type(block).forward is Block.forward and block.takes_wanted
    return ours and isinstance(block.attn, Attention) and type(block.attn).forward is Attention.forward


def _is_as_made(block: Block) -> bool:
    """Whether a block's numbers are all that anybody can see of it."""
    own = type(block).forward is Block.forward and type(block.attn) is Attention
    linear = type(block.attn.qkv) in (nn.Linear, FastLinear)
    return own and linear and not any(is_watched(module) for module in block.modules())


def is_watched(module: nn.Module) -> bool:
    """Whether a hook listens to a module, or to every module, or another function stands in place of its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or getattr(module_hooks, "_has_any_global_hook", bool)()  # a private name
    )


def _feed_forward(name: str, dim: int, hidden_dim: int, bias: bool) -> nn.Module:
    if name == "mlp":
        return Mlp(dim, hidden_dim, bias=bias)
    if name in ("swiglu", "swiglufused"):
        return SwiGLU(dim, hidden_dim, bias=bias)
    if name == "identity":
        return nn.Identity()
    raise ModelError(f"Block: ffn_layer={name!r} is not known; choose one of {', '.join(FFN_LAYERS)}")
