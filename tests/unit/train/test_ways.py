# SPDX-License-Identifier: Apache-2.0
"""Ways that a run tries once and keeps to: what is asked, who asks, and what a resume takes."""

import dataclasses

import pytest
import torch

from opendino.config import load
from opendino.errors import ConfigError
from opendino.train import pretrain as pretraining
from opendino.train import ways
from opendino.train.config import PretrainConfig
from opendino.train.pretrain import pretrain


@pytest.fixture
def config(tiny_words):
    return load(PretrainConfig, None, tiny_words)


def settle_attention(config):
    return ways._settle(config, None, "attention", ("auto", "fused", "written"), ways.try_attention).config


def test_attention_is_tried_on_the_crops_of_a_process(config, monkeypatch):
    tried = []
    monkeypatch.setattr(
        ways, "faster_way", lambda shapes, heads, width: tried.append((shapes, heads, width)) or ("written", 0.5)
    )
    assert ways.try_attention(config) == ("fused", "in float32 there is no choice")
    train = dataclasses.replace(config.train, precision="bf16", batch_size=8, accumulate=2)
    half = dataclasses.replace(config, train=train)
    assert ways.try_attention(half) == ("written", "written out it takes 0.50 of the fused kernel's time")
    none = dataclasses.replace(half, crops=dataclasses.replace(half.crops, local_number=0))
    ways.try_attention(none)
    assert tried == [([(8, 17), (8, 5)], 2, 16), ([(8, 17)], 2, 16)]


@pytest.mark.parametrize("way", ["fused", "written"])
def test_attention_is_tried_once_and_kept_for_a_resume(config, monkeypatch, way):
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="bf16", attention="auto"))
    monkeypatch.setattr(ways, "try_attention", lambda config: (way, "a trial"))
    outcome = pretrain(dataclasses.replace(half, checkpoint=dataclasses.replace(half.checkpoint, every=3)))
    stored = load(PretrainConfig, outcome.output_dir / "config.yaml")
    assert stored.train.attention == way
    monkeypatch.setattr(ways, "try_attention", lambda config: pytest.fail("tried again"))
    taken = []
    monkeypatch.setattr(pretraining, "use_attention", lambda method, way: taken.append(way))
    assert not pretrain(dataclasses.replace(half, checkpoint=dataclasses.replace(half.checkpoint, every=3))).trained
    assert taken == [way]
    other = {"fused": "written", "written": "fused"}[way]
    with pytest.raises(ConfigError, match=f"train.attention was {way} and is now {other}"):
        pretrain(dataclasses.replace(half, train=dataclasses.replace(half.train, attention=other)))


def test_a_gpu_leaves_attention_open(config, monkeypatch):
    """What was begun on one may go on on a CPU, by the way that is the layers' own there."""
    monkeypatch.setattr(ways, "pick_device", lambda name: torch.device(name))
    monkeypatch.setattr(ways, "try_attention", lambda config: pytest.fail("tried on a GPU"))
    train = dataclasses.replace(config.train, precision="bf16", device="cuda", attention="auto")
    assert settle_attention(dataclasses.replace(config, train=train)).train.attention == "auto"


def test_other_processes_take_the_way_of_attention_of_the_main_one(config, monkeypatch):
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="bf16"))
    said = []
    monkeypatch.setattr(ways, "is_main", lambda: False)
    monkeypatch.setattr(ways, "largest", lambda value: said.append(value) or (2,))
    monkeypatch.setattr(ways, "try_attention", lambda config: pytest.fail("tried beside the main process"))
    assert settle_attention(half).train.attention == "written"
    asked = dataclasses.replace(half, train=dataclasses.replace(half.train, attention="fused"))
    assert settle_attention(asked) is asked  # it differs from the main one's, which is said later
    assert said == [-1, -1]


def test_a_run_from_before_the_choice_of_attention_goes_on_as_it_was(config, monkeypatch):
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="bf16"))
    monkeypatch.setattr(ways, "try_attention", lambda config: ("fused", "a trial"))
    file = pretrain(half).output_dir / "config.yaml"
    before, setting, behind = file.read_text().partition(" attention: fused,")
    assert setting
    file.write_text(before + behind)
    taken = []
    monkeypatch.setattr(pretraining, "use_attention", lambda method, way: taken.append(way))
    assert not pretrain(half).trained
    assert taken == ["auto"]


@pytest.mark.parametrize("faster", [True, False])
def test_linear_layers_are_tried_once_and_kept_for_a_resume(config, monkeypatch, faster):
    asked, taken = [], []
    monkeypatch.setattr(ways, "try_linears", lambda *widths: asked.append(widths) or (faster, 0.5))
    monkeypatch.setattr(pretraining, "use_fast_linears", lambda method: taken.append(True))
    full = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="fp32"))
    outcome = pretrain(full)
    assert load(PretrainConfig, outcome.output_dir / "config.yaml").train.linears == ("onednn" if faster else "torch")
    assert asked == [(384, 1536)]
    monkeypatch.setattr(ways, "try_linears", lambda *_: pytest.fail("tried again"))
    assert not pretrain(full).trained
    assert len(taken) == 2 * faster
    off = dataclasses.replace(full, train=dataclasses.replace(full.train, linears="torch"))
    if faster:
        with pytest.raises(ConfigError, match=r"train\.linears was onednn and is now torch"):
            pretrain(off)
    else:
        assert not pretrain(off).trained


def test_what_trials_found_is_told_once_and_only_by_a_run_that_begins(config, monkeypatch, caplog):
    """A mistake that shows before the first step is one sentence; the log of trials is not in front of it."""
    caplog.set_level("INFO", logger="opendino")
    monkeypatch.setattr(ways, "try_linears", lambda *_: (False, 1.25))
    full = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="fp32"))

    def refuses(config):
        raise ConfigError("no such thing")

    with pytest.raises(ConfigError, match="no such thing"):
        pretrain(full, build=refuses)
    assert not caplog.messages
    pretrain(full)
    told = "train.linears = torch: by oneDNN a linear layer takes 1.25 of the time of PyTorch's own way, both passes"
    assert caplog.messages.count(told) == 1
    caplog.clear()
    assert not pretrain(full).trained
    assert told not in caplog.messages


def test_why_a_way_cannot_be_taken_is_told(config, monkeypatch):
    monkeypatch.setattr(ways, "faster_way", lambda *_, **__: ("fused", float("inf")))
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="bf16"))
    assert ways.try_attention(half) == ("fused", "written out it strays from float32")
    assert ways.try_products(half) == ("auto", "")
    monkeypatch.setattr(ways, "try_linears", lambda *_: (False, float("inf")))
    full = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="fp32"))
    way, told = ways.try_products(full)
    assert (way, "inf" in told) == ("torch", False)


def test_a_missing_device_is_said_before_anything_is_tried(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ways, "try_linears", lambda *_: pytest.fail("tried"))
    with pytest.raises(ConfigError, match="there is no CUDA device here"):
        ways.settle(dataclasses.replace(config, train=dataclasses.replace(config.train, device="cuda")), None)


def test_named_ways_are_taken_untried(config, monkeypatch):
    """Also from the config.yaml of another run, whatever a trial would say."""
    monkeypatch.setattr(ways, "try_linears", lambda *_: pytest.fail("tried"))
    for way in ("onednn", "torch"):
        train = dataclasses.replace(config.train, precision="fp32", attention="fused", linears=way)
        named = dataclasses.replace(config, train=train)
        assert ways.settle(named, None) == (named, ())


def test_linear_layers_are_not_tried_where_nothing_depends_on_it(config, monkeypatch):
    monkeypatch.setattr(ways, "try_linears", lambda *_: pytest.fail("tried"))
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="bf16", attention="fused"))
    assert ways.settle(half, None) == (half, ())  # autocast multiplies in its own way
    off = dataclasses.replace(half, train=dataclasses.replace(half.train, precision="fp32", linears="torch"))
    assert ways.settle(off, None) == (off, ())


def test_other_processes_take_the_linear_layers_of_the_main_one(config, monkeypatch):
    full = dataclasses.replace(config.train, precision="fp32", attention="fused")
    monkeypatch.setattr(ways, "is_main", lambda: False)
    monkeypatch.setattr(ways, "largest", lambda value: (max(value, 0),))
    monkeypatch.setattr(ways, "try_linears", lambda *_: pytest.fail("tried beside the main process"))
    assert ways.settle(dataclasses.replace(config, train=full), None).config.train.linears == "auto"
