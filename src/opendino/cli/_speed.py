# SPDX-License-Identifier: Apache-2.0
"""`opendino doctor speed`: what this machine does in ten seconds, in the units that other pages use."""

import io
import time
from collections.abc import Callable

_SECONDS = 3.0  # for each of the measurements


def measure(seconds: float = _SECONDS, preset: str = "vits14") -> list[tuple[str, str]]:
    """Rows of the report: decoding, the backbone, and which fast paths are taken.

    Args:
        seconds: at most, about, for each measurement.
        preset: of the backbone.
    """
    import torch

    from opendino.models.presets import create

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = create(preset).eval().to(device)
    batch = 64 if device.type == "cuda" else 4
    side = 16 * backbone.patch_size
    images = torch.randn(batch, backbone.in_chans, side, side, device=device)
    rows = [("decoding", f"{rate(_decoding(), seconds):.0f} JPEGs of 500 x 375 a second to 224 pixels, one thread")]
    for precision in ("fp32", "bf16"):

        def forward(fast: bool = precision == "bf16") -> None:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=fast):
                backbone(images)
            if device.type == "cuda":
                torch.cuda.synchronize()

        found = rate(forward, seconds) * batch
        rows.append(
            (f"{preset} {precision}", f"{found:.1f} images of {side} pixels a second on {device.type}, forward")
        )
    return [*rows, *fast_paths()]


def fast_paths() -> list[tuple[str, str]]:
    """Ways that are chosen for this machine, with the reason."""
    import torch

    cuda = torch.cuda.is_available()
    attention = (
        "scaled_dot_product_attention, fused on the device"
        if cuda
        else "fused in fp32; written out in bf16, where the fused kernel of this device is slower"
    )
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    wide = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if has.get(name)]
    bf16 = (
        "fast: the processor multiplies it" if {"avx512_bf16", "amx_bf16"} & set(wide) else "not faster than fp32 here"
    )
    return [
        ("attention", attention),
        ("linear layers", "left to the device" if cuda else _linear_layers()),
        ("bf16", "fast: tensor cores" if cuda else bf16),
        ("processor", ", ".join(wide) or "no vector instructions that matter were found"),
    ]


def _linear_layers() -> str:
    """Which way of the products of float32 is the faster one on this CPU."""
    import torch

    from opendino import onednn

    if not onednn.available():
        return "PyTorch's own; oneDNN's functions are not there"
    x, weight, bias = (torch.randn(*shape) for shape in ((257, 384), (1536, 384), (1536,)))
    with torch.inference_mode():
        packed = onednn.pack(weight)
        new, old = onednn.seconds_of(
            (
                lambda: onednn.linear(x, packed, bias, "gelu"),
                lambda: torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias)),
            )
        )
    return f"fp32 by oneDNN in {new / old:.2f} of the time of PyTorch's own way, GELU included"


def rate(work: Callable[[], object], seconds: float) -> float:
    """Calls a second, after one that does not count.

    Args:
        work: called again and again.
        seconds: until no further call is begun; one call is always measured.
    """
    work()
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < seconds:
        work()
        calls += 1
    return calls / (time.perf_counter() - start)


def _decoding() -> Callable[[], object]:
    """Decode one photograph-like JPEG and prepare it."""
    import numpy as np
    from PIL import Image

    from opendino.data.decode import decode
    from opendino.data.transforms import EvalTransform

    rng, buffer = np.random.default_rng(0), io.BytesIO()
    coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8))
    coarse.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    data, transform = buffer.getvalue(), EvalTransform(224)
    return lambda: transform(decode(data, 3))
