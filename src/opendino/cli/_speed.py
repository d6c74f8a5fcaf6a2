# SPDX-License-Identifier: Apache-2.0
"""`opendino doctor speed`: what this machine does, in the units that other pages use; some fifteen seconds if idle."""

import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from opendino.machine import usable_cores, usable_processors

_SECONDS = 2.0  # for each of the measurements
_PROCESSORS = Path("/proc/stat")
_BUSY = 0.3  # of a processor: beside that much other work, rates are no longer the machine's
_CLEARLY = 1.1  # beyond what a busy machine makes of equal speeds


def measure(seconds: float = _SECONDS, preset: str = "vits14") -> list[tuple[str, str]]:
    """Rows of the report: decoding, the backbone, and which fast paths are taken.

    Args:
        seconds: at most, about, for each measurement.
        preset: of the backbone.
    """
    import torch
    from torch import nn

    from opendino.fast.optimize import optimize
    from opendino.models.presets import create

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = create(preset).eval().to(device)
    batch = 64 if device.type == "cuda" else 4
    side = 16 * backbone.patch_size
    images = torch.randn(batch, backbone.in_chans, side, side, device=device)
    others = Others()
    (decoded,) = rates((_decoding(),), seconds)
    rows = [("decoding", f"{decoded:.0f} JPEGs of 500 x 375 a second to 224 pixels, one thread")]
    ways: list[tuple[str, nn.Module, bool]] = [("fp32", backbone, False), ("bf16", backbone, True)]
    if device.type == "cpu":
        ways += [("fp32 optimized", optimize(backbone), False), ("bf16 optimized", optimize(backbone, "bf16"), False)]

    def forward(model: nn.Module, half: bool) -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            model(images)
        if device.type == "cuda":
            torch.cuda.synchronize()

    works = [partial(forward, model, half) for _, model, half in ways]
    found = {name: batch * a_second for (name, *_), a_second in zip(ways, rates(works, seconds), strict=True)}
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    for name, images_a_second in found.items():
        told = f"{images_a_second:.1f} images of {side} pixels a second on {device.type}, forward{threads}"
        rows.append((f"{preset} {name}", told))
    return [("machine", _machine(others.processors())), *rows, *fast_paths(found)]


def fast_paths(rates: Mapping[str, float]) -> list[tuple[str, str]]:
    """Ways that are chosen for this machine, with the reason.

    Args:
        rates: images a second by way: "fp32", "bf16", and on a CPU "fp32 optimized" and "bf16 optimized".
    """
    import torch

    from opendino.data.fast import choose_decoder

    cuda = torch.cuda.is_available()
    attention = "scaled_dot_product_attention, fused on the device" if cuda else _attention()
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    wide = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if has.get(name)]
    decoder, why = choose_decoder("auto")
    return [
        ("decoder", f"{decoder}: {why}"),
        ("optimize", "for a CPU; not taken on this device" if cuda else _optimized(rates)),
        ("attention", attention),
        ("linear layers", "left to the device" if cuda else _linear_layers()),
        ("bf16", _half(rates["bf16"] / rates["fp32"], wide)),
        ("memory", "kept on a CPU alone" if cuda else _memory()),
        ("processor", ", ".join(wide) or "no vector instructions that matter were found"),
    ]


def _optimized(rates: Mapping[str, float]) -> str:
    """What `opendino.optimize` gains, as `embed`, `eval` and `curate` take it."""
    gains = (f"{rates[f'{name} optimized'] / rates[name]:.2f} in {name}" for name in ("fp32", "bf16"))
    said = f"{' and '.join(gains)} of the plain model's speed"
    return f"{said}; embed, eval and curate take it (optimize=false does not)"


def _half(gain: float, instructions: Sequence[str]) -> str:
    """What bfloat16 gains; instructions that multiply it do not always make it faster."""
    own = sorted({"avx512_bf16", "amx_bf16"} & set(instructions))
    verdict = "faster" if gain > _CLEARLY else "not faster" if gain > 1 / _CLEARLY else "slower"
    return f"{verdict} here: {gain:.2f} of fp32's speed" + (f", with {', '.join(own)}" if own else "")


def _attention() -> str:
    """Which way of attention trains faster here, on the crops of a published run."""
    from opendino.layers.attention import faster_way

    way, ratio = faster_way(((8, 257), (32, 50)), heads=6, width=64)
    taken = "written out" if way == "written" else "fused too"
    return f"fused in fp32; {taken} in bf16 training: written out it takes {ratio:.2f} of the fused kernel's time"


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


def _memory() -> str:
    """What a run does about memory that its steps free; a process of its own says it, for it would hold for this."""
    words = "from opendino.memory import keep_freed_memory; print(keep_freed_memory().told)"
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        child = subprocess.run(
            [sys.executable, "-c", words], env=found, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return "not found out"
    return f"in a training {child.stdout.strip()}"


def rates(works: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Calls a second of each of some works, after one that does not count.

    All in turn, so that others at work on the machine slow down all of them alike; the median of the calls counts.

    Args:
        works: called again and again.
        seconds: for each, until no further round is begun; one round is always measured.
    """
    for work in works:
        work()
    taken: list[list[float]] = [[] for _ in works]
    begun = time.perf_counter()
    while not taken[0] or time.perf_counter() - begun < seconds * len(works):
        for work, times in zip(works, taken, strict=True):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return [1 / max(statistics.median(times), 1e-9) for times in taken]


class Others:
    """How much of the processors other programs use, from here on; known on Linux alone."""

    def __init__(self) -> None:
        self._all, self._own, self._begun = _busy_seconds(), time.process_time(), time.perf_counter()

    def processors(self) -> float | None:
        """How many processors other programs have kept busy on average; None where the system does not say."""
        now = _busy_seconds()
        if now is None or self._all is None:
            return None
        spent = now - self._all - (time.process_time() - self._own)
        return max(spent / max(time.perf_counter() - self._begun, 1e-9), 0.0)


def _busy_seconds() -> float | None:
    """Time that the processors this process may use have worked since the system began, all together."""
    try:
        lines = [line.split() for line in _PROCESSORS.read_text(encoding="ascii").splitlines()]
        worked = {words[0]: sum(map(int, words[1:4])) for words in lines if words and words[0].startswith("cpu")}
        return sum(worked[f"cpu{number}"] for number in usable_processors()) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, KeyError):
        return None


def _machine(others: float | None) -> str:
    """How many processors there are, and whether other programs have used them meanwhile."""
    processors = usable_cores()
    told = f"{processors} processors" if processors > 1 else "1 processor"
    if others is None:
        return told
    told = f"{told}, of which other programs used {others:.1f} meanwhile"
    return (
        f"{told}: rates and what is said of them are those of a busy machine; ask again later"
        if others > _BUSY
        else told
    )


def _decoding() -> Callable[[], object]:
    """Decode one photograph-like JPEG and prepare it."""
    import numpy as np
    from PIL import Image

    from opendino.data.decode import decode
    from opendino.data.fast import choose_decoder
    from opendino.data.photo import open_photo
    from opendino.data.transforms import EvalTransform

    rng, buffer = np.random.default_rng(0), io.BytesIO()
    coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8))
    coarse.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    data, transform = buffer.getvalue(), EvalTransform(224)
    fast = choose_decoder("auto").decoder == "fast"
    return lambda: transform((open_photo(data, 3) if fast else None) or decode(data, 3))
