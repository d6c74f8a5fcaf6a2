# SPDX-License-Identifier: Apache-2.0
"""The face that protocols see: `forward_features` and `get_intermediate_layers`, for models that lack them.

A transformer of any library is a list of blocks and a final norm; what each block gives is caught while the model runs
as its library runs it, so positions, pre-norms and masks are the library's own. Models that give a map of features
(convolutions) have one layer, whose mean stands for CLS.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opendino.axes import Images
from opendino.errors import ModelError
from opendino.models.input_spec import InputSpec
from opendino.models.vision_transformer import VisionTransformer

_NORMS = ("norm", "layernorm", "post_layernorm", "ln_post", "layer_norm", "post_layer_norm", "final_layer_norm")


class Adapter(nn.Module):
    """What stands in for a `VisionTransformer` in every protocol.

    Attributes:
        embed_dim: width of the features D.
        patch_size: pixels of the image for each step of the grid.
        depth: layers that `get_intermediate_layers` can give.
        input_spec: what images the model expects.
        fixed_size: whether it takes images of that size only.
    """

    embed_dim: int
    patch_size: int
    depth: int
    input_spec: InputSpec
    fixed_size: bool = False
    num_register_tokens: int = 0

    def layers(self, x: Images, wanted: Sequence[int], norm: bool) -> list[tuple[Tensor, Tensor]]:
        """(patches [B, N, D], CLS [B, D]) after each wanted layer, counted from 0."""
        raise NotImplementedError

    def forward_features(self, x: Images) -> dict[str, Tensor]:
        """Normed CLS and patch tokens of the last layer, by the names of our backbone."""
        ((patches, cls),) = self.layers(x, [self.depth - 1], norm=True)
        return {"x_norm_clstoken": cls, "x_norm_patchtokens": patches}

    def get_intermediate_layers(
        self,
        x: Images,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, ...], ...]:
        """As `VisionTransformer.get_intermediate_layers`.

        Raises:
            ModelError: a layer asked for does not exist.
        """
        wanted = range(self.depth - n, self.depth) if isinstance(n, int) else sorted(set(n))
        if len(wanted) == 0 or wanted[0] < 0 or wanted[-1] >= self.depth:
            raise ModelError(
                f"get_intermediate_layers: n={n} asks for layers that a model of {self.depth} does not have"
            )
        grid = (x.shape[2] // self.patch_size, x.shape[3] // self.patch_size)
        taken = self.layers(x, list(wanted), norm)
        patches = [p.transpose(1, 2).unflatten(2, grid).contiguous() if reshape else p for p, _ in taken]
        if not return_class_token:
            return tuple(patches)
        return tuple((p, cls) for p, (_, cls) in zip(patches, taken, strict=True))


class TokenAdapter(Adapter):
    """A transformer.

    Args:
        tower: the library's module that turns images into tokens.
        run: how it is called on images; its result is not used.
        patch_size: pixels.
        spec: what images it expects.
        fixed_size: whether it takes only images of that size.

    Raises:
        ModelError: no list of blocks is found in it.
    """

    def __init__(
        self, tower: nn.Module, run: Callable[[Tensor], Any], patch_size: int, spec: InputSpec, fixed_size: bool = False
    ) -> None:
        super().__init__()
        self.tower, self._run, self.patch_size, self.input_spec = tower, run, patch_size, spec
        self.fixed_size = fixed_size
        blocks = blocks_of(tower)
        if blocks is None:
            raise ModelError(f"{type(tower).__name__}: has no list of transformer blocks; give a vision transformer")
        # In a tuple, so that parameters are not counted twice.
        self._blocks, self._norm, self._tokens_first = tuple(blocks), (final_norm(tower),), False
        self.depth = len(blocks)
        self.embed_dim = self._measure()

    def _measure(self) -> int:
        height, width = self.input_spec.size
        with torch.no_grad():
            tokens = self._catch(torch.zeros(1, self.input_spec.channels, height, width), [self.depth - 1])[0]
        # Some libraries put the tokens first and the images second; with one image the two can be told apart.
        if tokens.ndim == 3 and tokens.shape[0] > 1:
            self._tokens_first, tokens = True, tokens.transpose(0, 1)
        patches = height // self.patch_size * (width // self.patch_size)
        if tokens.ndim != 3 or tokens.shape[1] < patches:
            raise ModelError(
                f"{type(self.tower).__name__}: its last block gives {tuple(tokens.shape)} where {patches} patch tokens "
                "were wanted; hierarchical models and poolings inside the blocks are not supported"
            )
        return tokens.shape[2]

    def _catch(self, x: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        caught: dict[int, Tensor] = {}

        def keep(number: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:  # noqa: ANN401  whatever the library gives
                caught[number] = output if isinstance(output, Tensor) else output[0]

            return hook

        handles = [self._blocks[number].register_forward_hook(keep(number)) for number in wanted]
        try:
            self._run(x)
        finally:
            for handle in handles:
                handle.remove()
        return [caught[n].transpose(0, 1) if self._tokens_first else caught[n] for n in wanted]

    def layers(self, x: Images, wanted: Sequence[int], norm: bool) -> list[tuple[Tensor, Tensor]]:
        """(patches, CLS) after each wanted block; the mean patch where a model has no CLS token.

        What stands before the last N tokens is CLS and registers.
        """
        size = (x.shape[2], x.shape[3])
        if self.fixed_size and size != self.input_spec.size:
            raise ModelError(f"{type(self.tower).__name__}: takes images of {self.input_spec.size} only, got {size}")
        n = size[0] // self.patch_size * (size[1] // self.patch_size)
        pairs = []
        for tokens in self._catch(x, wanted):
            normed = self._norm[0](tokens) if norm and self._norm[0] is not None else tokens
            patches = normed[:, normed.shape[1] - n :]
            pairs.append((patches, normed[:, 0] if normed.shape[1] > n else patches.mean(dim=1)))
        return pairs


class MapAdapter(Adapter):
    """A model that gives a map of features [B, D, h, w]; the one layer it has.

    Args:
        tower: the library's module.
        run: images to the map.
        spec: what images it expects.

    Raises:
        ModelError: it gives something else.
    """

    depth = 1

    def __init__(self, tower: nn.Module, run: Callable[[Tensor], Tensor], spec: InputSpec) -> None:
        super().__init__()
        self.tower, self._run, self.input_spec = tower, run, spec
        with torch.no_grad():
            found = run(torch.zeros(1, spec.channels, *spec.size))
        if not isinstance(found, Tensor) or found.ndim != 4:
            raise ModelError(f"{type(tower).__name__}: gives no map of features [images, width, rows, columns]")
        self.embed_dim, self.patch_size = found.shape[1], spec.size[0] // found.shape[2]

    def layers(self, x: Images, wanted: Sequence[int], norm: bool) -> list[tuple[Tensor, Tensor]]:  # noqa: ARG002
        """The map as patches, and its mean as CLS."""
        patches = self._run(x).flatten(2).transpose(1, 2)
        return [(patches, patches.mean(dim=1)) for _ in wanted]


Backbone = VisionTransformer | Adapter
"""What a protocol can measure."""


def blocks_of(tower: nn.Module) -> nn.ModuleList | nn.Sequential | None:
    """The list of like modules that holds most of a model's parameters; None where there is no list."""
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 0]
    alike = [m for m in lists if len({type(part) for part in m.children()}) == 1 and any(True for _ in m.parameters())]
    # A wrapper around the blocks is a list of one, and holds more than they do.
    return max(alike, key=lambda m: (len(m) > 1, sum(p.numel() for p in m.parameters())), default=None)


def final_norm(tower: nn.Module) -> nn.Module | None:
    """The norm after the blocks, found by the names that libraries give it; None where a model has none."""
    for name in _NORMS:
        found = getattr(tower, name, None)
        if isinstance(found, nn.Module):
            return found
    return None
