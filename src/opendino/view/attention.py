# SPDX-License-Identifier: Apache-2.0
"""Where the class token and the registers look: attention of each head, their mean, and attention rollout.

Weights are computed from the queries and keys of the layer, softmax(q k^T / sqrt(d)), and shown for the patches.
Read next: `_drawing.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from opendino.data.crops import resize
from opendino.data.decode import Decoded
from opendino.data.transforms import EvalTransform
from opendino.errors import ConfigError, DataError
from opendino.models.vision_transformer import VisionTransformer
from opendino.view._drawing import Panel, PictureConfig, fitted, overlay, read_all, write
from opendino.view.pca import grid_of, place

_WEIGHTS = 2**30  # attention weights of all heads of a block that are held, four gigabytes


@dataclass(frozen=True)
class AttentionConfig(PictureConfig):
    """How the picture is made, beside what `PictureConfig` says.

    Attributes:
        out: PNG or HTML file.
        layer: number of the block, counted from 0; negative ones from the end.
        token: whose attention: "cls", or "registers" (mean over heads, one panel each).
        heads: a panel a head; else their mean alone.
        rollout: a panel of the attention of all layers together.
        mass: keep the patches that hold this share of a head's attention, as the DINO paper does with 0.6; None shows
            all of it.
    """

    out: str = "attention.png"
    layer: int = -1
    token: Literal["cls", "registers"] = "cls"
    heads: bool = True
    rollout: bool = True
    mass: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mass is not None and not 0 < self.mass <= 1:
            raise ConfigError(f"mass = {self.mass}: a share from 0 to 1 was wanted, the paper has 0.6")


def run(backbone: VisionTransformer, sources: Sequence[str], config: AttentionConfig) -> Path:
    """Make a row of panels for each image and write them.

    Raises:
        DataError: a source cannot be opened, or an image not read.
        ConfigError: there is no such layer, or the model has no registers.
    """
    if not -backbone.depth <= config.layer < backbone.depth:
        last = backbone.depth - 1
        raise ConfigError(f"layer = {config.layer}: the model has {backbone.depth} blocks; give 0 to {last}")
    if config.token == "registers" and not backbone.num_register_tokens:
        raise ConfigError("token = registers: the model has none; use token=cls")
    place(backbone, config.device)
    images = read_all(sources, backbone.in_chans, config)
    if not images:
        raise DataError("view attention: no image was named; give files, a folder or a data set")
    rows = [_row(backbone, image, config) for image in images]
    lead = f"Attention of {config.token} to the patches in block {config.layer % backbone.depth}."
    return write(config.out, rows, "Attention", lead)


def _row(backbone: VisionTransformer, image: Decoded, config: AttentionConfig) -> list[Panel]:
    pixels, (h, w) = as_input(backbone, image, config.size)
    layer = config.layer % backbone.depth
    own = attention_of(backbone, pixels, [layer])[layer]
    first = 1 + backbone.num_register_tokens
    maps: dict[str, Tensor] = {}
    if config.token == "registers":
        maps |= {f"register {i}": own[:, 1 + i, first:].mean(dim=0) for i in range(backbone.num_register_tokens)}
    else:
        maps["mean of heads"] = own[:, 0, first:].mean(dim=0)
        maps |= {f"head {i}": head for i, head in enumerate(own[:, 0, first:])} if config.heads else {}
    if config.rollout:
        # Weights of all heads of all blocks would be gigabytes.
        means = attention_of(backbone, pixels, range(backbone.depth), mean=True)
        maps["rollout"] = rollout_of([means[at] for at in range(backbone.depth)])[first:]
    picture = fitted(image, config.side)
    panels = [Panel(picture, "image")]
    for name, one in maps.items():
        kept = one if config.mass is None else strongest(one, config.mass)
        values = kept.view(h, w).numpy()
        low, high = float(values.min()), float(np.percentile(values, 99.5))
        panels.append(Panel(overlay(picture, values, low=low, high=high, smooth=config.smooth), name))
    return panels


def as_input(backbone: VisionTransformer, image: Decoded, size: int | None) -> tuple[Tensor, tuple[int, int]]:
    """An image as the model takes it, [1, C, H, W], nothing cut off; and its grid of patches.

    Raises:
        ConfigError: attention between so many patches would not fit into memory.
    """
    spec, patch = backbone.input_spec, backbone.patch_size
    most = math.isqrt(_WEIGHTS // backbone.num_heads) - 1 - backbone.num_register_tokens
    h, w = grid_of(backbone, image, size, most)
    transform = EvalTransform((h * patch, w * patch), None, spec.mean, spec.std, spec.channels)
    return transform.to_tensor(resize(image, h * patch, w * patch))[None], (h, w)


@torch.no_grad()
def attention_of(
    backbone: VisionTransformer, images: Float[Tensor, "1 C H W"], layers: Sequence[int], *, mean: bool = False
) -> dict[int, Float[Tensor, "_ T T"]]:
    """Attention weights of one image in some blocks, rows the tokens that look; float32 on the CPU.

    Args:
        backbone: in any mode, which is restored.
        images: one image.
        layers: numbers of blocks, counted from 0.
        mean: give the mean over the heads, as one head, in place of all.
    """
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> object:
        def hook(_module: object, _inputs: object, qkv: Tensor) -> None:
            _, T, D3 = qkv.shape
            q, k, _ = qkv[0].float().view(T, 3, backbone.num_heads, D3 // (3 * backbone.num_heads)).unbind(1)
            if not mean:
                found[layer] = _weights(q, k).cpu()
                return
            heads = (_weights(q[:, [head]], k[:, [head]]) for head in range(backbone.num_heads))
            total = next(heads)
            for one in heads:
                total += one
            found[layer] = (total / backbone.num_heads).cpu()

        return backbone.blocks[layer].attn.qkv.register_forward_hook(hook)  # type: ignore[union-attr]

    hooks = [keep(layer) for layer in layers]
    training = backbone.training
    try:
        backbone.eval().forward_features(images.to(next(backbone.parameters()).device))
    finally:
        backbone.train(training)
        for handle in hooks:
            handle.remove()  # type: ignore[attr-defined]
    return found


def _weights(q: Float[Tensor, "T A d"], k: Float[Tensor, "T A d"]) -> Float[Tensor, "A T T"]:
    return (torch.einsum("qad,kad->aqk", q, k) * q.shape[-1] ** -0.5).softmax(dim=-1)


def rollout_of(weights: Sequence[Float[Tensor, "A T T"]], token: int = 0) -> Float[Tensor, " T"]:
    """One row of `rollout`, without the products of whole tables.

    Args:
        weights: of each layer, first to last.
        token: that looks; 0 is CLS.
    """
    row = torch.zeros(weights[0].shape[-1])
    row[token] = 1.0
    for one in reversed(weights):
        row = 0.5 * (row @ one.mean(dim=0)) + 0.5 * row
    return row


def rollout(weights: Sequence[Float[Tensor, "A T T"]]) -> Float[Tensor, "T T"]:
    """Attention of all layers together: products of their mean over heads, half of each the token itself.

    Args:
        weights: of each layer, first to last.

    Source: Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers, section 3.
    """
    T = weights[0].shape[-1]
    whole = torch.eye(T)
    for one in weights:
        whole = (0.5 * one.mean(dim=0) + 0.5 * torch.eye(T)) @ whole
    return whole


def strongest(values: Float[Tensor, " n"], mass: float) -> Float[Tensor, " n"]:
    """The fewest patches that hold a share of the whole; the others are zero.

    Source: official DINO `visualize_attention.py`, threshold.
    """
    ordered, places = values.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    kept = torch.zeros_like(values)
    chosen = places[before < mass * values.sum()]
    kept[chosen] = values[chosen]
    return kept
