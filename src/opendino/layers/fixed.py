# SPDX-License-Identifier: Apache-2.0
"""A module that stays what and where it is, as its weights are packed for one device; `fast/` is made of these."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from opendino.errors import ModelError


class Fixed(nn.Module):
    """A module of an optimized model: what would move, convert, copy, save or load it is refused, and changes nothing.

    What changes nothing anyway, such as `to("cpu")` on a CPU, is allowed.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Fixed":
        # asked before torch goes through the parameters, and for all below here, packed weights too
        for device, dtype in sorted(_kinds(self), key=str):
            try:
                found = fn(torch.zeros(1, dtype=dtype, device=device))
            except (AssertionError, RuntimeError) as error:  # a device that is not there
                raise ModelError(_stays(device)) from error
            if found.device != device or found.dtype != dtype:
                raise ModelError(_stays(device))
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:  # noqa: ARG002
        raise ModelError("an optimized model cannot be saved; save the model that it was made from")

    def _load_from_state_dict(self, *_args: Any, **_settings: Any) -> None:  # noqa: ANN401
        raise ModelError("an optimized model takes no other weights; load them into a model, and optimize that")

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401  what copies and what saves ask
        """Refuse to be copied or pickled."""
        raise ModelError(
            "an optimized model can be neither copied nor pickled; copy or save the model that it was made from, and "
            "optimize that again"
        )


def refuse_tracing() -> None:
    """For what every image passes first.

    Raises:
        ModelError: a trace or an exported program is being made.
    """
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        raise ModelError("an optimized model can be neither traced nor exported; export the model it was made from")


def _kinds(module: nn.Module) -> set[tuple[torch.device, torch.dtype]]:
    """Where and what the tensors below a module are, whether torch knows of them or not."""
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [held for below in module.modules() for held in vars(below).values() if isinstance(held, Tensor)]
    return {(one.device, one.dtype) for one in tensors}


def _stays(device: torch.device) -> str:
    return (
        f"an optimized model stays on {device} in the types it was made in; move or convert the model it was made "
        "from, and optimize that"
    )
