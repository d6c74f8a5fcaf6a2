# SPDX-License-Identifier: Apache-2.0
"""The official repository's files: released backbones, classifiers, and the teacher's checkpoints of training.

Released files are flat and have the names of `opendino.models`. A training checkpoint has the key "teacher", in which
the backbone's names start with `backbone.` and stand beside the heads'; its blocks may be chunked. The hub's classifier
holds `backbone.*` and `linear_head.*`.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from opendino.checkpoint.convert import _table
from opendino.checkpoint.convert._table import Converted, Table, some
from opendino.errors import ConversionError
from opendino.models.chunks import fold_chunks

KEYS: Table = {
    name: name
    for name in (
        "cls_token",
        "pos_embed",
        "register_tokens",
        "mask_token",
        "patch_embed.proj.{p}",
        "blocks.{n}.norm1.{p}",
        "blocks.{n}.attn.qkv.{p}",
        "blocks.{n}.attn.proj.{p}",
        "blocks.{n}.ls1.gamma",
        "blocks.{n}.norm2.{p}",
        "blocks.{n}.mlp.fc1.{p}",
        "blocks.{n}.mlp.fc2.{p}",
        "blocks.{n}.mlp.w12.{p}",
        "blocks.{n}.mlp.w3.{p}",
        "blocks.{n}.ls2.gamma",
        "norm.{p}",
        "linear_head.{p}",
    )
}
"""Every official name, chunks folded, and the classifier's; a name stands for itself."""

_TRAINING_HEADS = ("dino_head.", "ibot_head.")
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def to_official(content: Mapping[str, Any], where: str = "official weights") -> Converted:
    """The backbone of an official file, and its classifier, under flat names, chunks folded.

    Args:
        content: what the file holds.
        where: the file, for messages.

    Returns:
        Dropped: the projection heads of training. Names left by DistributedDataParallel, FSDP or torch.compile are
        taken away.

    Raises:
        ConversionError: there is no backbone, more than one, something that is not a tensor, or a name that is none
            of ours.
    """
    state = flat(where, content)
    prefix = _prefix(where, state)
    around = prefix.removesuffix("backbone.")
    head = {name.removeprefix(around): t for name, t in state.items() if name.startswith(f"{around}linear_head.")}
    dropped = tuple(name for name in state if name.startswith(tuple(around + head for head in _TRAINING_HEADS)))
    # the student stands beside the teacher in checkpoints of the whole training state
    dropped += tuple(name for name in state if around == "teacher." and not name.startswith("teacher."))
    taken = {*dropped, *(around + name for name in head)}
    rest = {name: tensor for name, tensor in state.items() if name not in taken}
    outside = [name for name in rest if not name.startswith(prefix)]
    if outside:
        raise ConversionError(
            f"{where}: unexpected {some(outside)} beside the backbone '{prefix}'; wanted a backbone and its heads alone"
        )
    body = fold_chunks({name.removeprefix(prefix): tensor for name, tensor in rest.items()})
    return Converted(_table.to_official(where, body | head, KEYS), dropped)


def from_official(state: Mapping[str, Tensor], where: str = "weights") -> Converted:
    """A released file's content: the names as they are; with a classifier, those of the hub's classifier.

    Raises:
        ConversionError: a name that is none of ours.
    """
    out = _table.from_official(where, state, KEYS)
    if not any(name.startswith("linear_head.") for name in out):
        return Converted(out)
    return Converted(
        {name if name.startswith("linear_head.") else f"backbone.{name}": tensor for name, tensor in out.items()}
    )


def flat(where: str, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of a file: below "teacher", "model" or "state_dict", or the content itself.

    Names left by DistributedDataParallel, FSDP, checkpointing or torch.compile are taken away.

    Raises:
        ConversionError: a name is not text, or a value not a tensor.
    """
    for key in ("teacher", "model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    unnamed = [f"{name!r} is a {type(name).__name__}" for name in content if not isinstance(name, str)]
    if unnamed:
        raise ConversionError(f"{where}: not a state dict: the name {some(unnamed, 3)}; wanted text such as cls_token")
    odd = [f"{name} is a {type(value).__name__}" for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise ConversionError(
            f"{where}: not a state dict: {some(odd, 3)}; wanted names and tensors, flat or below 'teacher'"
        )
    return {_WRAPPERS.sub("", name): tensor for name, tensor in content.items()}


def _prefix(where: str, state: Mapping[str, Tensor]) -> str:
    """What stands before `cls_token`; the teacher's where there are several."""
    prefixes = [name.removesuffix("cls_token") for name in state if re.fullmatch(r"(.*\.)?cls_token", name)]
    if len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if prefix == "teacher.backbone."] or prefixes
    if len(prefixes) == 1:
        return prefixes[0]
    if set(state) == {"weight", "bias"}:
        raise ConversionError(
            f"{where}: holds a linear head without its backbone; load it by the name of both, such as dinov2_vits14_lc"
        )
    if prefixes:
        raise ConversionError(f"{where}: holds {len(prefixes)} backbones ({', '.join(prefixes)}); wanted one")
    raise ConversionError(
        f"{where}: holds no backbone: missing cls_token; wanted names such as cls_token and blocks.0.norm1.weight, "
        f"flat or below 'teacher', and these came: {some(state, 4)}"
    )
