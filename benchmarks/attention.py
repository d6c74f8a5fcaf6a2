# SPDX-License-Identifier: Apache-2.0
"""Attention on a CPU two ways: PyTorch's fused kernel, and its products written out; milliseconds and their ratio.

    python benchmarks/attention.py --repeats 5

Both ways of `layers/attention.py` for bfloat16 on a CPU, which runs try out for themselves (`train.attention`); in
float32 the same formula by plain products. Processor time of one thread, both ways in turn in one process, the fastest
of the repeats; the layout of queries, keys and values is the one that the layer makes. The last line is a JSON object:
the ratio of each row, and all rows.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opendino.layers.attention import _attend

SHAPES = ((128, 17, 2), (256, 5, 2), (64, 37, 6), (32, 50, 6), (16, 197, 6), (16, 257, 6), (4, 577, 6), (1, 1370, 6))
"""Images, tokens, heads of 64 channels."""


def written_out(qkv: Tensor, heads: int) -> Tensor:
    """The two products and the softmax between; the layer has it for bfloat16 alone."""
    if qkv.dtype == torch.bfloat16:
        return _attend(qkv, heads, "written")
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return (((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def fused(qkv: Tensor, heads: int) -> Tensor:
    """PyTorch's kernel."""
    return _attend(qkv, heads, "fused")


def milliseconds(way: Callable[[Tensor, int], Tensor], qkv: Tensor, heads: int, repeats: int) -> float:
    """Fastest of the repeats, with the backward pass where `qkv` asks for a gradient."""
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        mixed = way(qkv, heads)
        if qkv.requires_grad:
            mixed.backward(torch.ones_like(mixed))
            qkv.grad = None
        times.append(time.process_time() - begun)
    return 1000 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print(f"{'dtype':9} {'images':>6} {'tokens':>6} {'heads':>5}  {'pass':17} {'fused':>7} {'written':>7}  ratio")
    for dtype in (torch.bfloat16, torch.float32):
        for images, tokens, heads in SHAPES:
            for backward in (False, True):
                qkv = torch.randn(images, tokens, 3 * 64 * heads, dtype=dtype, requires_grad=backward)
                by_kernel, written = (milliseconds(way, qkv, heads, repeats) for way in (fused, written_out))
                name, work = str(dtype).removeprefix("torch."), "forward, backward" if backward else "forward"
                print(
                    f"{name:9} {images:6} {tokens:6} {heads:5}  {work:17} {by_kernel:7.1f} {written:7.1f}  "
                    f"{by_kernel / written:.2f}"
                )
                shape = f"{images} x {tokens} x {heads}"
                rows.append({"dtype": name, "shape": shape, "pass": work, "fused": by_kernel, "written": written})
    ratios = {f"{row['dtype']} {row['shape']} {row['pass']}": round(row["fused"] / row["written"], 2) for row in rows}
    print(json.dumps({"ratios": ratios, "rows": rows}))


if __name__ == "__main__":
    main()
