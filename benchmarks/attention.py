# SPDX-License-Identifier: Apache-2.0
"""Attention on a CPU two ways: PyTorch's fused kernel, and its products written out; milliseconds and their ratio.

    python benchmarks/attention.py --repeats 5

`layers/attention.py` takes the written-out way for bfloat16 on a CPU because of these figures. Processor time of one
thread, both ways in turn in one process, the fastest of the repeats; the layout of queries, keys and values is the one
that the layer makes. The last line is a JSON object: the ratio of each row, and all rows.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = ((128, 17, 2), (256, 5, 2), (64, 37, 6), (32, 50, 6), (16, 197, 6), (16, 257, 6), (4, 577, 6), (1, 1370, 6))
"""Images, tokens, heads of 64 channels."""


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The two products and the softmax between, as `layers/attention.py` has them for bfloat16."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1).to(v.dtype) @ v


def milliseconds(way: Callable[..., Tensor], qkv: Tensor, heads: int, repeats: int) -> float:
    """Fastest of the repeats, with the backward pass where `qkv` asks for a gradient."""
    images, tokens, width = qkv.shape
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        q, k, v = qkv.view(images, tokens, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = way(q, k, v).transpose(1, 2).reshape(images, tokens, width // 3)
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
                fused = milliseconds(F.scaled_dot_product_attention, qkv, heads, repeats)
                written = milliseconds(written_out, qkv, heads, repeats)
                name, work = str(dtype).removeprefix("torch."), "forward, backward" if backward else "forward"
                print(
                    f"{name:9} {images:6} {tokens:6} {heads:5}  {work:17} {fused:7.1f} {written:7.1f}  "
                    f"{fused / written:.2f}"
                )
                shape = f"{images} x {tokens} x {heads}"
                rows.append({"dtype": name, "shape": shape, "pass": work, "fused": fused, "written": written})
    ratios = {f"{row['dtype']} {row['shape']} {row['pass']}": round(row["fused"] / row["written"], 2) for row in rows}
    print(json.dumps({"ratios": ratios, "rows": rows}))


if __name__ == "__main__":
    main()
