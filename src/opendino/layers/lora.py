# SPDX-License-Identifier: Apache-2.0
"""LoRA: a frozen linear layer with a small trainable product beside it, which is folded into it in the end."""

import math
import re

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opendino.errors import ConfigError


class LoRALinear(nn.Module):
    """A linear layer plus `alpha / rank` times the product of two thin matrices; at first the product is zero.

    Args:
        linear: frozen.
        rank: inner width of the product.
        alpha: strength.

    Source: Hu et al. 2021, "LoRA", section 4.1.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        self.down = nn.Parameter(torch.empty(rank, linear.in_features, device=linear.weight.device))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "*B in"]) -> Float[Tensor, "*B out"]:
        """The layer's output with the product's added."""
        return self.linear(x) + self.scale * (x @ self.down.T) @ self.up.T

    @torch.no_grad()
    def merged_weight(self) -> Float[Tensor, "out in"]:
        """Weight of the plain layer that gives the same."""
        return self.linear.weight + self.scale * self.up @ self.down

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer that gives the same."""
        self.linear.weight.copy_(self.merged_weight())
        return self.linear


def add_lora(module: nn.Module, pattern: str, rank: int, alpha: float) -> list[str]:
    """Put LoRA on every linear layer whose dotted name a pattern ends on; everything else is frozen.

    Args:
        module: changed in place.
        pattern: regular expression, matched at the end of names: `attn.(qkv|proj)`.
        rank: inner width.
        alpha: strength.

    Returns:
        Names of the layers.

    Raises:
        ConfigError: no layer has such a name.
    """
    module.requires_grad_(False)
    wanted = re.compile(f"(?:{pattern})$")
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear) and wanted.search(name)]
    if not names:
        raise ConfigError(f"lora: no linear layer's name ends on {pattern!r}; such as attn\\.qkv or mlp\\.fc1")
    for name in names:
        _replace(module, name, LoRALinear(_linear(module, name), rank, alpha))
    return names


def merge_lora(module: nn.Module) -> None:
    """Fold every product into its layer; the module has the names and shapes that it had before `add_lora`."""
    for name, part in list(module.named_modules()):
        if isinstance(part, LoRALinear):
            _replace(module, name, part.merged())


def merged_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters as `merge_lora` would leave them, under their plain names; the module stays as it is."""
    layers = {name: part for name, part in module.named_modules() if isinstance(part, LoRALinear)}
    merged: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        owner = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        if owner is None:
            merged[name] = parameter
        elif name == f"{owner}.linear.weight":
            merged[f"{owner}.weight"] = layers[owner].merged_weight()
        elif name == f"{owner}.linear.bias":
            merged[f"{owner}.bias"] = parameter
    return merged


def _linear(module: nn.Module, name: str) -> nn.Linear:
    found = module.get_submodule(name)
    if not isinstance(found, nn.Linear):
        raise ConfigError(f"lora: {name} is not a linear layer")
    return found


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, part)
