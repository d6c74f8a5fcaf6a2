# SPDX-License-Identifier: Apache-2.0
"""A server under many clients for a bounded time: answers by status, and the memory of its process before and after.

python benchmarks/serve_load.py [--quick] [--model MODEL] [--clients 50] [--seconds 30] [--json FILE]

Starts `opendino serve` on this machine, lets the clients send one image again and again for a tenth of the time, reads
the resident memory, and goes on for the rest. Every answer but 200 and 429 is an error. Without `--model` the weights
are random: ViT-S/14, with `--quick` two blocks of width 64. Needs `opendino[serve]`.
"""

import argparse
import collections
import contextlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from opendino.checkpoint.weights import save_weights
from opendino.models.presets import create
from opendino.models.vision_transformer import VisionTransformer


@contextlib.contextmanager
def serving(*words: str, patience: float = 120.0) -> Iterator[tuple[int, int]]:
    """A server of its own: (port, process id); ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "opendino", "serve", *words, f"port={port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        until = time.monotonic() + patience
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start (exit status {process.poll()})")
            time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def memory(process: int) -> float:
    """Resident memory in MiB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def press(port: int, clients: int, seconds: float, body: bytes) -> collections.Counter:
    """Answers by status; a broken connection counts as 0."""
    found: collections.Counter = collections.Counter()
    until, lock = time.monotonic() + seconds, threading.Lock()

    def client() -> None:
        while time.monotonic() < until:
            line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                line.request("POST", "/embed?format=npy", body)
                answer = line.getresponse()
                answer.read()
                status = answer.status
            except OSError:
                status = 0
            finally:
                line.close()
            with lock:
                found[status] += 1
            if status == 429:
                time.sleep(0.02)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def image() -> bytes:
    """A JPEG of 500 x 375."""
    buffer, coarse = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def measure(model: str, clients: int, seconds: float, *words: str) -> dict:
    """What became of the requests, and the server's memory."""
    with serving(model, "embed.device=cpu", *words) as (port, process):
        press(port, clients, seconds / 10, image())
        before = memory(process)
        found = press(port, clients, seconds * 0.9, image())
        after = memory(process)
    return {"answers": dict(found), "seconds": seconds, "clients": clients, "before": before, "after": after}


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", default="")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model = words.model
        if not model:
            torch.manual_seed(0)
            quick = VisionTransformer(img_size=56, patch_size=14, embed_dim=64, depth=2, num_heads=1)
            save_weights(quick if words.quick else create("vits14"), Path(place) / "w")
            model = str(Path(place) / "w")
        found = measure(model, words.clients, words.seconds)
    told = ", ".join(f"{count} x {status}" for status, count in sorted(found["answers"].items()))
    print(
        f"{found['clients']} clients, {found['seconds']:g} s: {told}; "
        f"resident {found['before']:.0f} MiB before, {found['after']:.0f} MiB after"
    )
    if words.json:
        words.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
