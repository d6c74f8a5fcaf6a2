# SPDX-License-Identifier: Apache-2.0
"""What a step says of itself, on its way from the device; and a step that decides there whether it counts.

A CPU that asks a GPU for a number waits until all work before it is done, and the GPU then waits for more work. So
where nobody needs a step's figures at once they are read after the next step has been handed over (`loop.train`), and
what is not finite is left out by the device itself.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.optim import Optimizer

from opendino.distributed import all_reduce_sum, world_size


class Figures:
    """Numbers of a step by name, not yet waited for; losses are means over the processes.

    Args:
        loss: of the step.
        terms: that it is made of.
        norms: of the gradients of each network.
    """

    def __init__(self, loss: Tensor, terms: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> None:
        named = {"loss": loss} | {f"loss/{name}": term for name, term in terms.items()}
        self._names = [*named, *(f"grad_norm/{name}" for name in norms)]
        losses = _stack(named.values(), loss.device)
        if world_size() > 1:
            losses = all_reduce_sum(losses) / world_size()
        # A network without any gradient has its norm, 0, on the CPU.
        self._values = torch.cat([losses, _stack(norms.values(), loss.device)])
        self._event: torch.cuda.Event | None = None

    def counts(self) -> Float32[Tensor, ""]:
        """1 where all of them are finite, else 0; on the device."""
        return self._values.isfinite().all().float()

    def send(self) -> None:
        """Let them travel to the CPU behind the work that has been handed over."""
        if self._values.device.type == "cuda":
            here = torch.empty(self._values.shape, pin_memory=True)
            self._values = here.copy_(self._values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> dict[str, float]:
        """All of them, waited for in one go."""
        if self._event is not None:
            self._event.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))


def can_skip(optimizer: Optimizer) -> bool:
    """Whether `step_if` works with an optimizer: one fused kernel, on parameters that processes do not share."""
    from torch.distributed.tensor import DTensor

    shared = any(isinstance(parameter, DTensor) for group in optimizer.param_groups for parameter in group["params"])
    return bool(optimizer.defaults.get("fused")) and not shared


def step_if(optimizer: Optimizer, counts: Float32[Tensor, ""]) -> None:
    """A step of a fused optimizer that the device leaves out where `counts` is 0: no parameter and no moment changes.

    By what torch's gradient scaler uses for the same.
    """
    optimizer.found_inf = 1 - counts  # pyrefly: ignore[missing-attribute]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # pyrefly: ignore[missing-attribute]


def _stack(values: Iterable[Tensor], device: torch.device) -> Tensor:
    flat = [value.detach().float().reshape(1).to(device, non_blocking=True) for value in values]
    return torch.cat(flat) if flat else torch.empty(0, device=device)
