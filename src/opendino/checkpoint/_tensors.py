# SPDX-License-Identifier: Apache-2.0
"""Whether the tensors of a file can be weights at all; `_architecture.py` says whether they make a model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from opendino.checkpoint.convert._table import some
from opendino.errors import ConversionError

_RANKS = {
    "cls_token": 3,
    "register_tokens": 3,
    "reg_token": 3,
    "pos_embed": 3,
    "position_embeddings": 3,
    "mask_token": 2,
    "patch_embed.proj.weight": 4,
    "patch_embeddings.projection.weight": 4,
    "mlp.fc1.weight": 2,
    "mlp.fc2.weight": 2,
    "mlp.w12.weight": 2,
    "classifier.weight": 2,
    "linear_head.weight": 2,
}
"""End of a name, in any of the formats -> number of axes."""
_VECTORS = (".weight", ".bias", ".gamma", ".lambda1")


def check_ranks(where: str, state: Mapping[str, Tensor]) -> None:
    """Refuse tensors with another number of axes than their names promise, before anything is cut or joined.

    Raises:
        ConversionError: naming them.
    """
    odd = []
    for name, tensor in state.items():
        wanted = next((rank for end, rank in _RANKS.items() if name == end or name.endswith(f".{end}")), None)
        if wanted is not None and tensor.ndim != wanted:
            odd.append(f"{name} has {tensor.ndim} axes where {wanted} are wanted")
        elif name.endswith(_VECTORS) and tensor.ndim == 0:
            odd.append(f"{name} is a single number")
    if odd:
        raise ConversionError(f"{where}: not the weights of a model: {some(odd)}; download or copy them again")


def as_float32(where: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in float32; those of float32 are passed on, not copied.

    Args:
        where: the file, for messages.
        state: floats of any width.

    Raises:
        ConversionError: whole, Boolean or complex numbers, which are not weights (quantised ones need their scales);
            or numbers that are not finite in float32.
    """
    odd = [f"{name} ({str(t.dtype).removeprefix('torch.')})" for name, t in state.items() if not is_weight(t)]
    if odd:
        raise ConversionError(
            f"{where}: weights are floating-point numbers, and these are not: {some(odd)}; quantised weights have to "
            "be turned back by the library that wrote them"
        )
    floats = {name: tensor.float() for name, tensor in state.items()}
    check_finite(where, floats)
    return floats


def is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is dense and of a floating-point type."""
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_quantized


def check_finite(where: str, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not all finite.

    Raises:
        ConversionError: naming them.
    """
    odd = [name for name, tensor in state.items() if not tensor.is_meta and not bool(tensor.float().isfinite().all())]
    if odd:
        raise ConversionError(
            f"{where}: not all numbers are finite in {some(odd)}; a file was damaged, or a training diverged: take an "
            "earlier checkpoint, or download or copy it again"
        )
