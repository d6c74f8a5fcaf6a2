# SPDX-License-Identifier: Apache-2.0
"""Teacher targets by a running centre and a sharp softmax; the alternative is `sinkhorn.py`."""

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from opendino.distributed import all_reduce_sum


class Centering(nn.Module):
    """Softmax of the teacher's logits less their running mean, which keeps any one prototype from taking all.

    Buffers:
        center: running mean of the logits, float32, zeros at first; shape [1, K], for patches [1, 1, K] (the
            shapes of the official checkpoints).

    Source: Caron et al. 2021, equation 4; official `loss/dino_clstoken_loss.py` and `loss/ibot_patch_loss.py`.
    Differs: the centre moves at once, not at the next call, so a checkpoint never lacks the last batch; patches are
        averaged over all processes, not first within each, so the result does not depend on how they are spread.
    """

    center: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9, *, patches: bool = False) -> None:
        super().__init__()
        self.momentum = momentum
        shape = (1, 1, prototypes) if patches else (1, prototypes)
        self.register_buffer("center", torch.zeros(shape, dtype=torch.float32))

    @torch.no_grad()
    def forward(
        self, logits: Float[Tensor, "rows K"], temp: float, real: Bool[Tensor, " rows"] | None = None
    ) -> Float32[Tensor, "rows K"]:
        """Targets of a batch by the centre of the batches before it; then, in training, the centre moves.

        Args:
            logits: the teacher's prototype logits of this process; computed in float32 whatever comes in.
            temp: the teacher's temperature, about 0.04 to 0.07.
            real: False for rows that are padding: the centre does not feel them; None where none is.

        Returns:
            Probabilities; of no meaning in rows of padding.
        """
        # In one matrix of float32, as it is the largest of a step beside the logits.
        targets = logits.to(torch.float32, copy=True).sub_(self.center.view(1, -1)).div_(temp)
        targets.sub_(targets.amax(dim=1, keepdim=True)).exp_()
        targets.div_(targets.sum(dim=1, keepdim=True))
        if self.training:
            self.update(logits, real)
        return targets

    @torch.no_grad()
    def update(self, logits: Float[Tensor, "rows K"], real: Bool[Tensor, " rows"] | None = None) -> None:
        """Move the centre towards the mean of the logits of all processes; it stays where there are none at all."""
        if real is None:
            rows = self.center.new_full((1,), logits.shape[0])
        else:
            logits, rows = logits.masked_fill(~real[:, None], 0), real.sum(dtype=torch.float32).view(1)
        total = torch.cat([logits.sum(dim=0, dtype=torch.float32), rows])
        total = all_reduce_sum(total)
        count = total[-1]
        mean = (total[:-1] / count.clamp_min(1)).view_as(self.center)
        self.center.lerp_(mean, (1 - self.momentum) * (count > 0))
