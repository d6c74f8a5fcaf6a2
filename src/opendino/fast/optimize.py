# SPDX-License-Identifier: Apache-2.0
"""`opendino.optimize`: a copy of a model for inference alone, faster, with the same methods, nearly the same numbers.

What it does, each where it helps: linear layers by oneDNN with packed weights and GELU in the same pass
(`layers/packed_linear.py`), LayerScale and the scale of the queries inside the weights, attention by the faster way
(`attention.py`), few images at a time through each block (`block.py`), position tables resized once for each size.
On request, and with other numbers: 8-bit products (`layers/int8_linear.py`) and token merging (`merging.py`).
"""

import copy
from operator import index
from typing import Any, Literal, SupportsFloat, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opendino import onednn
from opendino.errors import ModelError
from opendino.fast.block import FastBlock, Products, parts_of
from opendino.fast.merging import merged_blocks
from opendino.fast.tables import Tables
from opendino.layers.fixed import Fixed, refuse_tracing
from opendino.models.classifier import LinearClassifier
from opendino.models.vision_transformer import VisionTransformer

Precision = Literal["fp32", "bf16", "int8"]
Model = TypeVar("Model", bound=nn.Module)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "float32": torch.float32, "bfloat16": torch.bfloat16}
_KNOWN = "give a backbone or classifier of opendino.load, or a model of opendino.hf"


class FastVisionTransformer(Fixed, VisionTransformer):
    """A backbone whose blocks are `FastBlock`s; made by `optimize`, for inference alone."""

    tables: Tables
    merge: float

    @torch.no_grad()
    def forward_features(self, x: Any, masks: Any = None) -> Any:  # noqa: ANN401  the face of the backbone
        """As `VisionTransformer.forward_features`, without gradients and outside autocast."""
        if self.merge and not isinstance(x, Tensor):  # each group lets go of as many as it can spare
            masks = [None] * len(x) if masks is None else masks
            return [self.forward_features(one, mask) for one, mask in zip(x, masks, strict=True)]
        with torch.autocast(self.cls_token.device.type, enabled=False):
            return super().forward_features(x, masks)

    @torch.no_grad()
    def get_intermediate_layers(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  as above
        """As `VisionTransformer.get_intermediate_layers`, without gradients and outside autocast."""
        with torch.autocast(self.cls_token.device.type, enabled=False):
            return super().get_intermediate_layers(x, *args, **kwargs)

    @torch.no_grad()
    def leading_tokens(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  as above
        """As `VisionTransformer.leading_tokens`, without gradients and outside autocast."""
        with torch.autocast(self.cls_token.device.type, enabled=False):
            return super().leading_tokens(x, *args, **kwargs)

    def _tokens(self, x: Tensor, masks: Tensor | None) -> Float[Tensor, "B T D"]:
        refuse_tracing()  # before a table without numbers is kept
        return super()._tokens(x.to(self.cls_token.dtype), masks)

    def _positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 tokens D"]:
        return self.tables.of(grid, super()._positions)


class MergingVisionTransformer(FastVisionTransformer):
    """One that merges tokens on the way; the other does not pass by here, and holds no tokens but the last ones."""

    def _after_blocks(
        self, tokens: Float[Tensor, "B T D"], wanted: set[int], first: int | None = None
    ) -> list[Float[Tensor, "B _ D"]]:
        blocks, protected = cast("list[FastBlock]", list(self.blocks)), 1 + self.num_register_tokens
        return merged_blocks(blocks, tokens, wanted, share=self.merge, protected=protected, first=first)


def optimize(
    model: Model,
    dtype: Precision | torch.dtype | None = None,
    image_size: int | tuple[int, int] | None = None,
    *,
    merge: float = 0.0,
    trial: bool = True,
) -> Model:
    """A copy of a model for inference alone: the same methods, nearly the same numbers, in less time and memory.

    On a CPU ways are chosen by short trials on this machine, with the number of threads set now. The copy is in
    evaluation mode, gives tokens in float32 whatever the type of its products, holds no gradients, and stays on its
    device; it can be neither converted nor copied, saved, traced or exported, all of which the model itself can. That
    is left as it is, and later changes to it do not reach the copy. A block with layers that are not its own (LoRA)
    stays as it is, in float32.

    Args:
        model: a backbone or classifier of `opendino.load`, or a model of `opendino.hf`.
        dtype: of the products; None takes that of the model's weights. "int8", on a CPU alone, has 8-bit integers in
            most linear layers and bfloat16 in the rest. Measured on random weights of S and B: behind the final norm,
            where the largest numbers are 3 to 6, none is further from the model's than 1e-5 ("fp32"), 5e-2 ("bf16") or
            0.2 ("int8"); root mean square 2e-6, 1e-2 and 3.5e-2 of the tokens'. Before the norm (`x_prenorm`,
            `norm=False`) the shares are the same, of tokens that may be larger.
        image_size: side, or (H, W), in pixels, that the position table is resized to right away; other sizes still
            work, and pay for it once each.
        merge: share of an image's patches that each block merges into others like them, 0 to 0.5 (token merging); they
            come back as equal tokens at the end. 0.04 leaves half of the patches after twelve blocks. For backbones and
            classifiers of `opendino.load`; docs/performance.md says what it costs.
        trial: on a CPU, choose how to multiply, and in bfloat16 how to attend, by short trials of speed; False takes
            oneDNN wherever it is there and attention written out, so that another process has the same numbers to the
            last bit.

    Raises:
        ModelError: a model or a type that this cannot be done for, a size that does not fit the patch, or a setting
            that is not of its kind.
    """
    _check(model, merge, trial)
    size = _sides(image_size)
    products = _products(model, dtype, None if trial else onednn.available())
    if isinstance(model, VisionTransformer):
        return cast("Model", _backbone(model, products, size, merge))
    if isinstance(model, LinearClassifier):
        fast = _backbone(model.backbone, products, size, merge)
        return copy.deepcopy(model, {id(model.backbone): fast}).eval().requires_grad_(False)
    if merge:
        raise ModelError(
            "optimize: merge is for backbones and classifiers of opendino.load; leave it out, or load it so"
        )
    return cast("Model", cast("Any", model).optimized(products, size))


def _check(model: object, merge: object, trial: object) -> None:
    if isinstance(model, str):
        raise ModelError(f"optimize: {model!r} is a name; open it with opendino.load or opendino.create, and give that")
    ours = isinstance(model, VisionTransformer | LinearClassifier)
    if not ours and not (isinstance(model, nn.Module) and callable(getattr(model, "optimized", None))):  # `opendino.hf`
        raise ModelError(f"optimize: a {type(model).__name__} is no model that this knows; {_KNOWN}")
    if not isinstance(merge, SupportsFloat) or not 0 <= float(merge) <= 0.5:
        raise ModelError(f"optimize: merge={merge!r} is no share from 0 to 0.5 of an image's patches")
    if not isinstance(trial, bool):
        raise ModelError(f"optimize: trial={trial!r} is neither True nor False; give one of them")


def _sides(image_size: Any) -> tuple[int, int] | None:  # noqa: ANN401  whatever came
    """(H, W), or None where no size is given."""
    if image_size is None:
        return None
    given = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    try:
        H, W = (index(side) for side in given)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"optimize: image_size={image_size!r} is no size in pixels; give a side such as 224, or (H, W)"
        ) from error
    return H, W


def fast_copy(backbone: Any, precision: Precision, merge: float = 0.0) -> Any:  # noqa: ANN401  any model
    """A backbone's fast copy on a CPU; the backbone itself on other devices, and where it is none of ours.

    For those who take a backbone through many images, and let go of the copy afterwards. The same in every process.

    Raises:
        ModelError: 8-bit integers or merging are asked for and there would be no copy, so that nothing comes of it.
    """
    ours = type(backbone) is VisionTransformer and backbone.cls_token.device.type == "cpu"
    if precision == "int8" and not ours:
        raise ModelError("int8 is for the fast copy of a backbone of opendino.load on a CPU; give fp32 or bf16")
    if merge and not ours:
        raise ModelError("merge is for the fast copy of a backbone of opendino.load on a CPU; leave it out")
    return optimize(backbone, precision, merge=merge, trial=False) if ours else backbone


def _products(model: nn.Module, dtype: object, packed: bool | None) -> Products:
    if dtype != "int8":
        return Products(_dtype_of(model, dtype), packed)
    device = next(model.parameters()).device.type
    if device != "cpu" or not onednn.int8_available():
        why = f"the model is on {device}" if device != "cpu" else "this processor or this PyTorch has no fast ones"
        raise ModelError(f"optimize: int8 needs 8-bit products on a CPU, and {why}; give fp32 or bf16")
    return Products(torch.bfloat16, packed, int8=True)


def _dtype_of(model: nn.Module, dtype: object) -> torch.dtype:
    if isinstance(dtype, str) and dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype is None:
        dtype = next(model.parameters()).dtype
    if not isinstance(dtype, torch.dtype) or dtype not in _DTYPES.values():
        raise ModelError(f"optimize: dtype={dtype!r} is none that products are made in; give fp32, bf16 or int8")
    return dtype


def _backbone(
    model: VisionTransformer, products: Products, image_size: tuple[int, int] | None, merge: float
) -> FastVisionTransformer:
    if isinstance(model, FastVisionTransformer):
        raise ModelError("optimize: the model is optimized already; give the one that it was made from")
    last = model.depth - 1
    blocks = nn.ModuleList(fast_block(block, products, last=i == last) for i, block in enumerate(model.blocks))
    if merge and not all(isinstance(block, FastBlock) for block in blocks):
        raise ModelError("optimize: merge needs blocks as they were made, and some have other layers, such as LoRA's")
    fast: Any = copy.deepcopy(model, {id(model.blocks): nn.ModuleList()}).float()
    fast.blocks = blocks
    fast.eval().requires_grad_(False)
    fast.__class__ = MergingVisionTransformer if merge else FastVisionTransformer
    fast.tables, fast.merge = Tables(), merge
    if image_size is not None and not fast.baked:
        patch = fast.patch_size
        if any(side < patch or side % patch for side in image_size):
            raise ModelError(
                f"optimize: image_size={image_size[0]}x{image_size[1]} is no multiple of the patch, {patch}"
            )
        fast._positions((image_size[0] // patch, image_size[1] // patch))
    return fast


def fast_block(block: nn.Module, products: Products, *, last: bool = False) -> nn.Module:
    """The fast one of a block; a copy of it where it holds layers that are not its own."""
    parts = parts_of(block)
    return copy.deepcopy(block).float() if parts is None else FastBlock(parts, products, last=last)
