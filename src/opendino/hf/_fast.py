# SPDX-License-Identifier: Apache-2.0
"""The models of the Hugging Face face for `opendino.optimize`: their blocks and position tables, made fast.

Read `opendino/fast/optimize.py` first; `modeling.py` calls `fast_copy`.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import GELUActivation

from opendino.errors import ModelError
from opendino.fast.block import BlockParts, FastBlock, Products
from opendino.fast.tables import Tables
from opendino.hf._layers import Dinov2Embeddings, Dinov2Layer, Dinov2MLP, Dinov2SwiGLUFFN, Grid, Mask, mask_for
from opendino.layers.fixed import Fixed, refuse_tracing


class FastLayer(nn.Module):
    """`Dinov2Layer` in evaluation mode, with products by a `FastBlock`."""

    def __init__(self, parts: BlockParts, products: Products) -> None:
        super().__init__()
        self.block = FastBlock(parts, products)

    @torch.no_grad()
    def forward(
        self, hidden_states: Float[Tensor, "B T D"], attention_mask: Mask = None, output_attentions: bool = False
    ) -> Float[Tensor, "B T D"] | tuple[Float[Tensor, "B T D"], Float[Tensor, "B A T T"]]:
        """As `Dinov2Layer.forward`."""
        if attention_mask is None and not output_attentions:
            return self.block(hidden_states)
        x = hidden_states.float()
        bias = mask_for(attention_mask, "sdpa", x[:, None])
        if bias is not None and bias.dtype != torch.bool:
            bias = bias.to(self.block.dtype)
        with torch.autocast(x.device.type, enabled=False):
            out = self.block.run(x, bias)
            return (out, self.block.attention_weights(x, bias)) if output_attentions else out


class FastEmbeddings(Fixed, Dinov2Embeddings):
    """`Dinov2Embeddings` that resize the position table once for each size.

    As the first module of every model they are the first to be asked what is to be moved, converted or loaded.
    """

    tables: Tables

    def _positions(self, grid: Grid) -> Float[Tensor, "1 tokens D"]:
        refuse_tracing()  # before a table without numbers is kept
        return self.tables.of(grid, super()._positions)


def fast_copy(model: Any, products: Products, image_size: Grid | None) -> Any:  # noqa: ANN401  a model of `modeling.py`
    """A model with fast layers, for inference alone.

    Raises:
        ModelError: it is fast already, or the size holds no patch.
    """
    inner = getattr(model, model.base_model_prefix, model)
    if isinstance(inner.embeddings, FastEmbeddings):
        raise ModelError("optimize: the model is optimized already; give the one that it was made from")
    layers = nn.ModuleList(_fast_layer(layer, products) for layer in inner.encoder.layer)
    fast = copy.deepcopy(model, {id(inner.encoder.layer): nn.ModuleList()}).float()
    inner = getattr(fast, fast.base_model_prefix, fast)
    inner.encoder.layer = layers
    embeddings = inner.embeddings
    embeddings.__class__, embeddings.tables = FastEmbeddings, Tables()
    if image_size is not None:
        patch = embeddings.patch_embeddings.patch_size
        if any(side < one for side, one in zip(image_size, patch, strict=True)):
            raise ModelError(f"optimize: image_size={image_size[0]}x{image_size[1]} holds no patch")
        embeddings._positions((image_size[0] // patch[0], image_size[1] // patch[1]))
    return fast.eval().requires_grad_(False)


def _fast_layer(layer: Dinov2Layer, products: Products) -> nn.Module:
    parts = _parts_of(layer)
    return copy.deepcopy(layer).float() if parts is None else FastLayer(parts, products)


def _parts_of(layer: Dinov2Layer) -> BlockParts | None:
    """The layer's weights; None where it holds layers that are not its own, such as LoRA's, or another activation."""
    attention, mlp = layer.attention.attention, layer.mlp
    three = (attention.query, attention.key, attention.value)
    if isinstance(mlp, Dinov2SwiGLUFFN):
        kind, first, second = "swiglu", mlp.weights_in, mlp.weights_out
    elif isinstance(mlp, Dinov2MLP) and isinstance(mlp.activation, GELUActivation | nn.GELU) and _exact(mlp.activation):
        kind, first, second = "mlp", mlp.fc1, mlp.fc2
    else:
        return None
    if any(type(one) is not nn.Linear for one in three):
        return None
    parts = BlockParts(
        norm1=layer.norm1,
        heads=attention.num_attention_heads,
        qkv=_side_by_side(three),
        proj=layer.attention.output.dense,
        scale1=layer.layer_scale1.lambda1,
        norm2=layer.norm2,
        kind=kind,
        first=first,
        second=second,
        scale2=layer.layer_scale2.lambda1,
    )
    return parts if parts.plain() else None


def _exact(activation: nn.Module) -> bool:
    return getattr(activation, "approximate", "none") == "none" and getattr(activation, "act", None) in (
        None,
        nn.functional.gelu,
    )


def _side_by_side(layers: tuple[nn.Linear, ...]) -> nn.Linear:
    """One layer that gives the outputs of several."""
    wide = sum(layer.out_features for layer in layers)
    one = nn.Linear(layers[0].in_features, wide, bias=layers[0].bias is not None, device="meta")
    one.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), requires_grad=False)
    if layers[0].bias is not None:
        one.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]), requires_grad=False)
    return one
