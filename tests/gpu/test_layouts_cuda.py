# SPDX-License-Identifier: Apache-2.0
"""One CUDA device: shares, compiled blocks and recomputation give the losses of a plain run, in bfloat16."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from opendino.cli.main import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def losses(folder):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["parallel.mode=fsdp"], 1e-2),
        (["parallel.mode=fsdp", "train.precision=fp32"], 1e-4),
        (["parallel.recompute=full"], 1e-2),
        (["parallel.recompute=selective", "parallel.mode=fsdp"], 1e-2),
        (["train.accumulate=2", "parallel.mode=fsdp"], 1e-2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_losses_are_those_of_a_plain_run(tiny_words, tmp_path, words, near):
    base = [*tiny_words, "train.device=cuda", "train.precision=bf16", "student.drop_path_rate=0", "optim.warmup=0"]
    plain = [word for word in words if word.startswith("train.precision")]
    assert main(["pretrain", *base, *plain, f"output_dir={tmp_path / 'plain'}"]) == 0
    assert main(["pretrain", *base, *words, f"output_dir={tmp_path / 'other'}"]) == 0
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), rel=near)


def test_prototypes_in_blocks_give_the_losses_of_whole_logits(tiny_words, tmp_path):
    base = [*tiny_words, "train.device=cuda", "train.precision=bf16", "dino.prototypes=16384", "optim.warmup=0"]
    for in_blocks in ("false", "true"):
        assert main(["pretrain", *base, f"dino.in_blocks={in_blocks}", f"output_dir={tmp_path / in_blocks}"]) == 0
    assert losses(tmp_path / "true") == pytest.approx(losses(tmp_path / "false"), rel=1e-2)


SCRIPT = """
import sys
from opendino.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


GRAPHS = ["parallel.compile=true", "parallel.compile_mode=reduce-overhead"]


def pretrain_apart(*words):
    done = subprocess.run([sys.executable, "-c", SCRIPT, "pretrain", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "words",
    [
        ["parallel.compile=true"],
        ["parallel.compile=true", "parallel.mode=fsdp"],
        ["parallel.compile=true", "parallel.recompute=selective"],
        GRAPHS,
        [*GRAPHS, "train.accumulate=2"],
    ],
    ids=str,
)
def test_compiled_blocks(tiny_words, tmp_path, words):
    """In a process of its own: torch.compile cannot look through the checks of shapes that tests put around."""
    base = [*tiny_words, "train.device=cuda", "train.precision=bf16", "student.drop_path_rate=0", "knn.every=3"]
    for name, more in (("plain", []), ("compiled", words)):
        pretrain_apart(*base, f"output_dir={tmp_path / name}", *more)
    found = losses(tmp_path / "compiled")
    assert all(map(math.isfinite, found))
    assert found == pytest.approx(losses(tmp_path / "plain"), rel=1e-2)


def test_compiled_blocks_with_stochastic_depth_and_recomputation(tiny_words, tmp_path):
    """The images that are left out are drawn in another order, so the losses are near those of a plain run at best."""
    base = [*tiny_words, "train.device=cuda", "train.precision=bf16", "student.drop_path_rate=0.3"]
    for name, more in (("plain", []), ("compiled", ["parallel.compile=true", "parallel.recompute=selective"])):
        pretrain_apart(*base, f"output_dir={tmp_path / name}", *more)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=0.05)
