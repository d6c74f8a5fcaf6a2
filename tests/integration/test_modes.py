# SPDX-License-Identifier: Apache-2.0
"""What is given up for speed or memory leaves ten steps of a run alone, within its precision.

Layouts on several processes, passes and compiled blocks: `test_processes.py`, `tests/unit/train/test_loop.py`.
"""

import json
from pathlib import Path

import pytest

from opendino.cli.main import main

STEPS = 10


def losses(folder):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def test_ten_steps_are_those_of_a_plain_run(tiny_words, tmp_path):
    """Recomputing draws stochastic depth again as it was, so it stays on; bfloat16 has three digits."""
    base = [*tiny_words, f"train.iterations={STEPS}", "optim.warmup=0", "dino.centering=sinkhorn_knopp"]

    def run(*words):
        folder = tmp_path / " ".join(words or ["plain"])
        assert main(["pretrain", *base, *words, f"output_dir={folder}"]) == 0
        return losses(folder)

    plain = run()
    assert len(plain) == STEPS
    assert plain[-1] < plain[0]
    for how in ("full", "selective"):
        assert run(f"parallel.recompute={how}") == pytest.approx(plain, rel=1e-6), how
    half = run("train.precision=bf16")
    assert half == pytest.approx(plain, rel=1e-2)
    assert half != plain
    for how in ("full", "selective"):
        assert run("train.precision=bf16", f"parallel.recompute={how}") == pytest.approx(half, rel=1e-3), how
