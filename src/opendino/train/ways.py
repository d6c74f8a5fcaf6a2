# SPDX-License-Identifier: Apache-2.0
"""Ways to compute that a run tries on its machine before its first step, and keeps to; used by `pretrain.py`.

Trials on a busy machine differ from one to the next, and the last bits of a run that goes on must not: what was found
stands in the run's settings, and all processes take what the main one found.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

from opendino.distributed import is_main, largest, together, world_size
from opendino.layers.attention import Way, faster_way
from opendino.layers.fast_linear import Products, try_linears
from opendino.train.config import PretrainConfig
from opendino.train.parts import pick_device
from opendino.train.run_folder import Stored

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
    config, of_attention = _settle(config, stored, "attention", get_args(Way), try_attention)
    config, of_linears = _settle(config, stored, "linears", get_args(Products), try_products)
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
    if math.isinf(ratio):
        return way, "written out it strays from float32"
    return way, f"written out it takes {ratio:.2f} of the fused kernel's time"


def try_products(config: PretrainConfig) -> tuple[Products, str]:
    """Whose products a run that leaves `train.linears` open takes, and why; tries it out where there is a choice.

    Args:
        config: of the run; its device is a CPU.
    """
    if config.train.precision != "fp32":
        return "auto", ""  # autocast multiplies in its own way
    dim = min(max(config.student.arguments().get("embed_dim", 768), _NARROWEST), _WIDEST)
    faster, ratio = try_linears(dim, 4 * dim)
    if math.isinf(ratio):
        return "torch", "oneDNN's functions are not there, or stray from PyTorch's own way"
    told = f"by oneDNN a linear layer takes {ratio:.2f} of the time of PyTorch's own way, both passes"
    return "onednn" if faster else "torch", told


def _settle(
    config: PretrainConfig,
    stored: Stored | None,
    name: str,
    ways: Sequence[str],
    trial: Callable[[PretrainConfig], tuple[str, str]],
) -> Settled:
    """One setting of the group `train`; all processes come here, whatever theirs says."""
    asked, why = getattr(config.train, name), ""
    way = asked if stored is None or asked != "auto" else _kept(stored, name, ways)
    with together():
        # On a GPU there is no choice, and none is kept: the run may go on on a CPU.
        if way == "auto" and stored is None and is_main() and pick_device(config.train.device).type == "cpu":
            way, why = trial(config)
    agreed = ways[largest(ways.index(way) if is_main() else -1)[0]]
    if asked != "auto":
        return Settled(config)
    changed: dict[str, Any] = {name: agreed}
    settled = dataclasses.replace(config, train=dataclasses.replace(config.train, **changed))
    return Settled(settled, (f"train.{name} = {agreed}: {why}",) if why else ())


def _kept(stored: Stored, name: str, ways: Sequence[str]) -> str:
    """What a run has kept to so far; runs from before a choice go on as they were, which is what "auto" is too."""
    kept = stored.settings.get(f"train.{name}")
    return str(kept) if kept in ways else "auto"
