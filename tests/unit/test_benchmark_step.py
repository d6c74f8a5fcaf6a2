# SPDX-License-Identifier: Apache-2.0
"""The plain step that `benchmarks/step_cpu.py` compares with is plain, and computes what the fast one does."""

import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from opendino.layers.attention import Attention
from opendino.layers.fast_linear import FastLinear
from opendino.losses.sinkhorn import sinkhorn_knopp
from opendino.models.vision_transformer import VisionTransformer
from opendino.onednn import available
from opendino.optim.ema import update_ema

FILE = Path(__file__).parents[2] / "benchmarks" / "step_cpu.py"


@pytest.fixture(scope="module")
def benchmark():
    specification = importlib.util.spec_from_file_location("script_step_cpu", FILE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def built(benchmark, tiny_settings, monkeypatch):
    monkeypatch.setattr("opendino.methods.dinov2.IN_BLOCKS_FROM", 16)  # blocks of prototypes in the smallest run too
    monkeypatch.setattr("opendino.losses._chunked.WEIGHTS_AT_ONCE", {"cpu": 16})
    more = [word for word in tiny_settings if not word.startswith(("dino.cent", "dino.proto", "train."))]
    return lambda dtype: benchmark.build(48, dtype, 4, more=[*more, "train.threads=1"])


def test_sinkhorn_with_its_matrix_rewritten(benchmark):
    logits = torch.rand(12, 30, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(
        benchmark.plain_sinkhorn(logits, 0.07), sinkhorn_knopp(logits, 0.07), rtol=1e-3, atol=1e-6
    )
    with pytest.raises(SystemExit):
        benchmark.plain_sinkhorn(logits, 0.07, torch.ones(12, dtype=torch.bool))


def test_the_teacher_parameter_by_parameter(benchmark):
    student, one, two = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)
    two.load_state_dict(one.state_dict())
    benchmark.plain_ema(one, student, 0.9)
    update_ema(two, student, 0.9)
    for name, found in one.state_dict().items():
        torch.testing.assert_close(found, two.state_dict()[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("dtype", "close"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_every_mixture_of_ways_learns_alike(benchmark, built, dtype, close):
    """Three steps from the same start, without any of them, with all, and without one each."""
    losses = {}
    for left_out in ("", "all", *benchmark.WAYS):
        torch.manual_seed(0)
        run, config = built(dtype)
        images = next(benchmark.noise(config, torch.device("cpu")))
        ways = set() if left_out == "all" else set(benchmark.WAYS) - {left_out}
        losses[left_out] = [benchmark.step(run, images, number, ways)[1] for number in range(3)]
    assert losses[""][0] != losses[""][2]
    for found in losses.values():
        assert found == pytest.approx(losses[""], rel=close)


def test_each_way_is_there_or_not(benchmark, built):
    run, _ = built("fp32")
    for ways in ((), benchmark.WAYS):
        benchmark.take(run, ways)
        fast = bool(ways)
        linears = {type(layer) for layer in run.method.modules() if isinstance(layer, nn.Linear)}
        assert linears == {FastLinear if fast and available() else nn.Linear}
        attention = {layer.way for layer in run.method.modules() if isinstance(layer, Attention)}
        assert attention == {"written" if fast else "fused"}
        assert run.method.config.dino.in_blocks == fast == run.method.config.dino.needed_tokens
        assert {bool(group["fused"]) for group in run.optimizer.param_groups} == {fast}


@pytest.mark.parametrize("way", ["linears", "blocks", "adamw", "ema", "sinkhorn", "needed"])
def test_what_is_left_out_does_not_run(benchmark, built, monkeypatch, way):
    """The functions of the library that make a way are called with it, and not without."""
    run, config = built("fp32")
    images = next(benchmark.noise(config, torch.device("cpu")))
    called = []

    def listen(place, name):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args, **more: called.append(name) or real(*args, **more))

    places = {
        "linears": (torch.ops.mkldnn, "_linear_pointwise"),
        "blocks": (benchmark._chunked._ChunkedCrossEntropy, "apply"),
        "adamw": (torch, "_fused_adamw_"),
        "ema": (torch, "_foreach_lerp_"),
        "sinkhorn": (benchmark.dinov2, "sinkhorn_knopp"),
        "needed": (VisionTransformer, "chosen_tokens"),
    }
    listen(*places[way])
    benchmark.step(run, images, 0)
    if way != "linears" or available():
        assert called
    called.clear()
    benchmark.step(run, images, 1, set(benchmark.WAYS) - {way})
    assert not called


def test_which_ways_a_cell_has(benchmark):
    assert benchmark.ways_of(4096, "fp32") == ("linears", "adamw", "ema", "sinkhorn", "needed", "memory")
    assert benchmark.ways_of(65536, "bf16") == ("attention", "blocks", "adamw", "ema", "sinkhorn", "needed", "memory")


def test_leaving_out_is_measured_against_the_steps_beside_it(benchmark, monkeypatch):
    """Fast steps that grow slower: one without is compared with the mean of the two around it, and none goes first."""
    clock = iter([1.0, 3.0, 2.0, 2.5, 3.0, 4.0, 4.0, 4.0, 5.0, 6.0])  # fast, without, fast, without, fast, and again
    asked = []

    def worker(kept):
        def step(number, ways=benchmark.WAYS):
            asked.append((kept, set(benchmark.WAYS) - set(ways)))
            return [next(clock), 0.0]

        return step

    found = benchmark.leave_out(worker(True), None, ("ema", "adamw"), 2)
    assert found == {"ema": {"seconds": 4.0, "ratio": 1.5}, "adamw": {"seconds": 3.25, "ratio": 1.0}}
    rounds = ("ema", "adamw"), ("adamw", "ema")
    assert asked == [(True, left) for ways in rounds for left in (set(), {ways[0]}, set(), {ways[1]}, set())]
    assert benchmark.leave_out(None, None, (), 3) == {}
    asked.clear()
    monkeypatch.setattr(benchmark, "WARM", 2)
    clock = iter([9.0, 8.0, 1.0, 2.0, 3.0, 4.5, 3.0])  # the first two steps of the other worker do not count
    found = benchmark.leave_out(worker(True), lambda ways: worker("memory" in ways), ("ema", "memory"), 1)
    assert found == {"ema": {"seconds": 2.0, "ratio": 1.0}, "memory": {"seconds": 4.5, "ratio": 1.5}}
    without = (False, {"memory"})
    assert asked == [without, without, (True, set()), (True, {"ema"}), (True, set()), without, (True, set())]


def test_a_worker_steps_and_keeps_its_memory_if_told_to(benchmark, built, monkeypatch, capsys):
    made = [built("fp32"), built("fp32")]
    monkeypatch.setattr(benchmark, "build", lambda *_: made.pop())
    kept = []
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: kept.append(True))
    answers = {}
    for ways in ((), benchmark.WAYS):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(" ".join([str(n), *ways]) + "\n" for n in range(2))))
        benchmark.work(48, "fp32", 4, ways)
        ready, *answers[bool(ways)] = capsys.readouterr().out.splitlines()
        assert ready == "ready"
        assert bool(kept) == bool(ways)
    plain, fast = ([float(line.split()[1]) for line in answers[found]] for found in (False, True))
    assert len(plain) == 2
    assert plain == pytest.approx(fast, rel=1e-5)


NEEDY = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
import step_cpu
step_cpu.build = lambda *_: (None, None)
step_cpu.noise = lambda *_: [None]
sizes = iter([2**26, 2**20])
step_cpu.step = lambda *_: (float(torch.ones(next(sizes)).sum() * 0), 0.0)
step_cpu.work(48, "fp32", 4, ())
"""
"""A worker whose first step needs 256 MiB, and its second one 4."""


def test_a_worker_tells_what_steps_took_at_most():
    # In a process of its own, as workers are: this one may have kept memory that it would find again.
    words = [sys.executable, "-c", NEEDY, str(FILE.parent)]
    told = subprocess.run(words, input="0\n1\n", capture_output=True, text=True, check=True).stdout
    first, second = (float(line.split()[2]) for line in told.splitlines()[1:])
    assert 200 < first < 400
    assert first <= second < first + 40


def test_a_peer_that_does_not_start_is_told(benchmark):
    with pytest.raises(SystemExit, match="lightly_step"), benchmark.Worker("false", "lightly_step.py", (48, "fp32", 4)):
        pass
