# SPDX-License-Identifier: Apache-2.0
"""A paper plan: how long a step takes on 8 to 1,024 GPUs, from counts of work and stated assumptions. Measures nothing.

    python benchmarks/plan.py
    python benchmarks/plan.py --peak 990 --mfu 0.4 --network 25 --batch 3072

Counted: products of backbones and heads (teacher forward, student forward and backward, what stochastic depth leaves
out), bytes that gradients, shares and the losses' sums move, bytes that a device holds. Assumed: what share of the peak
is reached, the network, how much of the traffic hides behind computing. The table is docs/scaling.md's.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opendino.models.presets import PRESETS

GIB = 2**30


@dataclass(frozen=True)
class Training:
    """One published way to train.

    Attributes:
        preset: of the backbone.
        batch: images a step, of all devices together.
        prototypes: of each head.
        heads: width of the bottleneck of DINO's head, and of iBOT's where it has its own.
        drop: rate of stochastic depth.
        fsdp: shares in place of whole copies.
    """

    preset: str
    batch: int
    prototypes: int
    heads: tuple[int, ...]
    drop: float
    fsdp: bool


TRAININGS = (
    Training("vits14", 2048, 65536, (256,), 0.3, False),
    Training("vitb14", 2048, 65536, (256,), 0.3, False),
    Training("vitl14", 3072, 131072, (384, 256), 0.4, True),
    Training("vitg14", 3072, 131072, (384, 256), 0.4, True),
)
MASKED = 0.5 * 0.3
"""Of a global crop's patches: half of the crops, three tenths of each on average."""
HELD = 4 + 4 + 8 + 4
"""Bytes of a trained parameter in float32: student, gradient, AdamW's moments, teacher."""
KEPT = {"mlp": 42, "swiglu": 47.4}
"""Bytes that bfloat16 training keeps for the backward pass of each token, channel and block, by the feed-forward layer;
counted by hooks on what autograd saves, as is the share that stochastic depth leaves out."""
RECOMPUTED = 4
"""The same with `parallel.recompute=full`: the block's input stays."""


@dataclass(frozen=True)
class Head:
    """Sizes of a head: linear layers, then prototypes. The defaults are the published ones."""

    prototypes: int
    bottleneck: int = 256
    hidden: int = 2048
    layers: int = 3

    def parameters(self, width: int) -> float:
        """Of its matrices, over a backbone of that width."""
        if self.layers == 1:
            return width * self.bottleneck + self.bottleneck * self.prototypes
        inner = width * self.hidden + (self.layers - 2) * self.hidden**2 + self.hidden * self.bottleneck
        return inner + self.bottleneck * self.prototypes


def forward_flops(preset: str, side: int) -> float:
    """Of an image through a known backbone."""
    return backbone_flops(PRESETS[preset], side)


def backbone_flops(shape: Mapping[str, Any], side: int) -> float:
    """Of an image: products and attention of all blocks, and the patches; `shape` has arguments of a backbone."""
    width, depth, patch = shape["embed_dim"], shape["depth"], shape["patch_size"]
    patches = (side // patch) ** 2
    tokens = patches + 1
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    return depth * block + 2 * patches * 3 * patch**2 * width


def parameters(preset: str) -> float:
    """Of a backbone, its matrices alone."""
    shape = PRESETS[preset]
    return 12 * shape["depth"] * shape["embed_dim"] ** 2


def heads_of(one: Training) -> list[Head]:
    """Of class tokens, and of patches where they have their own."""
    return [Head(one.prototypes, bottleneck) for bottleneck in one.heads]


def trained(one: Training) -> tuple[float, float]:
    """Parameters of the backbone, and of the heads."""
    return parameters(one.preset), sum(head.parameters(PRESETS[one.preset]["embed_dim"]) for head in heads_of(one))


def flops(one: Training) -> float:
    """Of an image and step, with the published crops."""
    return step_flops(PRESETS[one.preset], heads_of(one), one.drop)


def step_flops(
    shape: Mapping[str, Any],
    heads: Sequence[Head],
    drop: float,
    sides: tuple[int, int] = (224, 98),
    local: int = 8,
    *,
    all_tokens: bool = False,
) -> float:
    """Of an image and step: teacher forward, student forward and backward, heads.

    What is computed again, such as logits in blocks, does not count. `tests/integration/test_step_flops.py` counts.

    Args:
        shape: arguments of the backbone.
        heads: of class tokens, and of patches where they have their own.
        drop: rate of stochastic depth, whose share of the student's blocks is left out.
        sides: of a global and of a local crop, pixels.
        local: number of local crops.
        all_tokens: whether the last block computes all tokens, and not those that losses look at alone.
    """
    whole, small = (backbone_flops(shape, side) for side in sides)
    of_global, of_local = ((side // shape["patch_size"]) ** 2 + 1 for side in sides)
    # The student has class tokens of local crops besides, and counts thrice: a backward pass is two products.
    of_class, of_patches = 2 + 3 * (2 + local), 4 * 2 * (of_global - 1) * MASKED
    rows = of_class + of_patches
    # The last block projects and feeds forward only what losses look at, left out by stochastic depth or not.
    idle = 0 if all_tokens else 2 * of_global + 3 * (1 - drop) * (2 * of_global + local * of_local) - rows
    image_head, patch_head = (head.parameters(shape["embed_dim"]) for head in (heads[0], heads[-1]))
    blocks = 2 * whole + 3 * (1 - drop) * (2 * whole + local * small) - idle * 18 * shape["embed_dim"] ** 2
    return blocks + 2 * (of_class * image_head + of_patches * patch_head)


def memory(one: Training, images: float, gpus: int) -> tuple[float, float, float]:
    """Bytes that a device holds: networks and moments; what one pass keeps for its backward pass; the same, recomputed.

    Of heads the targets count, and where they are shared out (FSDP) the student's logits too, four bytes a number each;
    whole copies go through the prototypes in blocks.

    Args:
        one: way to train.
        images: of a device and pass.
        gpus: how many there are.
    """
    shape = PRESETS[one.preset]
    held = HELD * sum(trained(one)) / (gpus if one.fsdp else 1)
    of_global, of_local = ((side // shape["patch_size"]) ** 2 + 1 for side in (224, 98))
    inputs = images * (2 * of_global + 8 * of_local) * shape["embed_dim"]
    rows = 2 + 2 * (of_global - 1) * MASKED
    logits = 4 * images * one.prototypes * (rows + (rows + 8 if one.fsdp else 0))
    kept = (1 - one.drop) * KEPT[shape.get("ffn_layer", "mlp")] * inputs
    return held, kept * shape["depth"] + logits, RECOMPUTED * inputs * shape["depth"] + kept + logits


def traffic(one: Training, gpus: int) -> float:
    """Bytes that each device sends and receives in a step."""
    backbone, head = trained(one)
    part = (gpus - 1) / gpus
    sums = 2 * 2 * 3 * 4 * one.prototypes  # Sinkhorn's row sums, three times, for CLS and patches; there and back
    if not one.fsdp:
        return part * (2 * 4 * (backbone + head) + sums)
    # bfloat16 parameters: the student's before each pass, its heads' once for both, the teacher's once; gradients in
    # float32 to their owner
    return part * ((3 * 2 + 4) * backbone + (2 * 2 + 4) * head + sums)


def row(one: Training, gpus: int, asked: argparse.Namespace) -> dict[str, float | str]:
    """A line of the table."""
    batch = asked.batch or one.batch
    each = batch / gpus
    compute = each * flops(one) / (asked.peak * 1e12 * asked.mfu)
    link = asked.inside if gpus <= 8 else asked.network
    moving = traffic(one, gpus) / (link * 1e9)
    # a block's messages and the losses' few sums wait for the slowest of all devices
    messages = PRESETS[one.preset]["depth"] * (4 if one.fsdp else 0) + 16
    waiting = messages * asked.latency * 1e-6 * max(gpus, 2).bit_length()
    hidden = min(moving, asked.overlap * compute) if one.fsdp else 0.0  # whole copies average after the pass
    step = compute + moving - hidden + waiting
    return {
        "model": one.preset,
        "gpus": gpus,
        "images each": each,
        "compute ms": 1e3 * compute,
        "traffic ms": 1e3 * moving,
        "waiting ms": 1e3 * waiting,
        "images/s": batch / step,
        "of ideal": compute / step,
        "decode cores a GPU": batch / step / gpus / asked.crops,
        **dict(
            zip(("GiB held", "GiB kept", "GiB recomputed"), (b / GIB for b in memory(one, each, gpus)), strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the same: nothing is measured")
    parser.add_argument("--peak", type=float, default=790, help="TFLOP/s in bfloat16 that large products reach")
    parser.add_argument("--mfu", type=float, default=0.45, help="share of it that a step reaches; not measured")
    parser.add_argument("--inside", type=float, default=300, help="GB/s of each device inside a machine of eight")
    parser.add_argument("--network", type=float, default=40, help="GB/s of each device between machines")
    parser.add_argument("--latency", type=float, default=10, help="microseconds for each doubling of devices")
    parser.add_argument("--overlap", type=float, default=0.7, help="share of computing that shares may travel behind")
    parser.add_argument("--crops", type=float, default=180, help="images a second that a core decodes and crops")
    parser.add_argument("--batch", type=int, default=0, help="images a step, in place of the published")
    asked = parser.parse_args()
    rows = [row(one, gpus, asked) for one in TRAININGS for gpus in (8, 64, 256, 1024)]
    work = {one.preset: flops(one) / 1e9 for one in TRAININGS}
    for one in TRAININGS:
        print(
            f"{one.preset}: {work[one.preset]:.0f} GFLOP an image, {sum(trained(one)) / 1e6:.0f} M trained parameters"
        )
    names = list(rows[0])
    print("\n| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for line in rows:
        print("| " + " | ".join(value if isinstance(value, str) else f"{value:,.4g}" for value in line.values()) + " |")
    batches = {one.preset: asked.batch or one.batch for one in TRAININGS}
    print(json.dumps({"gflop_per_image": work, "batches": batches, "rows": rows}))


if __name__ == "__main__":
    main()
