# SPDX-License-Identifier: Apache-2.0
"""Ways to compute that a run tries on its machine before its first step, and keeps to; used by `pretrain.py`.

Trials on a busy machine differ from one to the next, and the last bits of a run that goes on must not: what was found
stands in the run's settings, and all processes take what the main one found.
"""

import dataclasses
from typing import NamedTuple, get_args

import torch

from opendino.distributed import is_main, largest, together, world_size
from opendino.layers.attention import Way, faster_way
from opendino.layers.fast_linear import try_linears
from opendino.train.config import PretrainConfig
from opendino.train.run_folder import Stored

_WAYS = get_args(Way)
_NARROWEST, _WIDEST = 384, 1024  # of a trial: products of narrow layers take no time, of wide ones too much


class Settled(NamedTuple):
    """What came of trials.

    Attributes:
        config: with the ways that all processes take.
        told: a line for each way that was tried: which one, and why.
    """

    config: PretrainConfig
    told: tuple[str, ...] = ()


def settle(config: PretrainConfig, stored: Stored | None) -> Settled:
    """The config with the ways that all processes take: those of the run so far, or what trials say.

    Args:
        config: filled in.
        stored: of the run that goes on; None where one begins.
    """
    config, of_attention = _settle_attention(config, stored)
    config, of_linears = _settle_linears(config, stored)
    return Settled(config, of_attention + of_linears)


def try_attention(config: PretrainConfig) -> tuple[Way, str]:
    """How a run that leaves `train.attention` open mixes bfloat16, and why; tries it out where there is a choice.

    Args:
        config: of the run; its device is a CPU.
    """
    if config.train.precision != "bf16":
        return "fused", "in float32 there is no choice"
    shape, crops = config.student.arguments(), config.crops
    heads, first = shape.get("num_heads", 12), 1 + shape.get("num_register_tokens", 0)
    of_one = max(config.train.batch_size // (world_size() * config.train.accumulate), 1)
    shapes = [
        (number * of_one, first + (size // shape.get("patch_size", 16)) ** 2)
        for number, size in ((2, crops.global_size), (crops.local_number, crops.local_size))
        if number
    ]
    way, ratio = faster_way(shapes, heads, shape.get("embed_dim", 768) // heads)
    return way, f"written out it takes {ratio:.2f} of the fused kernel's time"


def _settle_attention(config: PretrainConfig, stored: Stored | None) -> Settled:
    way, why = config.train.attention, ""
    if way == "auto" and stored is not None:
        kept = stored.settings.get("train.attention")  # runs of before have none, and go on as they were
        way = kept if kept in _WAYS else way
    with together():
        # On a GPU there is no choice, and none is kept: the run may go on on a CPU.
        if way == "auto" and stored is None and is_main() and _on_cpu(config):
            way, why = try_attention(config)
    agreed = _WAYS[largest(_WAYS.index(way) if is_main() else -1)[0]]
    if config.train.attention != "auto":
        return Settled(config)
    settled = dataclasses.replace(config, train=dataclasses.replace(config.train, attention=agreed))
    return Settled(settled, (f"train.attention = {agreed}: {why}",) if why else ())


def _settle_linears(config: PretrainConfig, stored: Stored | None) -> Settled:
    take, why = config.train.onednn, ""
    if stored is not None:
        take = take and bool(stored.settings.get("train.onednn", True))
    with together():
        if take and stored is None and is_main() and _on_cpu(config) and config.train.precision == "fp32":
            dim = min(max(config.student.arguments().get("embed_dim", 768), _NARROWEST), _WIDEST)
            take, ratio = try_linears(dim, 4 * dim)
            why = f"by oneDNN a linear layer takes {ratio:.2f} of the time of PyTorch's own way, both passes"
    agreed = bool(largest(int(take) if is_main() else -1)[0])
    if not config.train.onednn:
        return Settled(config)
    settled = dataclasses.replace(config, train=dataclasses.replace(config.train, onednn=agreed))
    return Settled(settled, (f"train.onednn = {str(agreed).lower()}: {why}",) if why else ())


def _on_cpu(config: PretrainConfig) -> bool:
    return config.train.device == "cpu" or not torch.cuda.is_available()
