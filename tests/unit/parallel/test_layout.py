# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch

from opendino.errors import ConfigError
from opendino.methods.dinov2 import DINOv2
from opendino.methods.settings import DINOConfig, DINOv2Config
from opendino.models.vision_transformer import VisionTransformer
from opendino.parallel import layout
from opendino.parallel.layout import Layout, ParallelConfig, choose_mode, lay_out


def made():
    torch.manual_seed(0)
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    head = DINOConfig(prototypes=8, hidden_dim=8, bottleneck_dim=4)
    return DINOv2(VisionTransformer(**shape), VisionTransformer(**shape), DINOv2Config(head))


@pytest.mark.parametrize(
    ("mode", "processes", "device", "parameters", "found"),
    [
        ("auto", 1, "cuda", 10**9, "none"),
        ("auto", 2, "cpu", 10**9, "ddp"),
        ("auto", 2, "cuda", 10**6, "ddp"),
        ("auto", 2, "cuda", 10**9, "fsdp"),
        ("fsdp", 2, "cpu", 1, "fsdp"),
        ("none", 1, "cpu", 1, "none"),
        ("ddp", 2, "cuda", 10**9, "ddp"),
        ("ddp", 1, "cpu", 1, "none"),
        ("fsdp", 1, "cpu", 1, "fsdp"),
    ],
)
def test_modes(monkeypatch, mode, processes, device, parameters, found):
    monkeypatch.setattr(layout, "world_size", lambda: processes)
    assert choose_mode(mode, device, parameters) == found


def test_processes_that_share_nothing_are_refused(monkeypatch):
    monkeypatch.setattr(layout, "world_size", lambda: 4)
    with pytest.raises(ConfigError, match=r"parallel\.mode = none, but there are 4 processes"):
        choose_mode("none", "cpu", 1)


def test_alone_nothing_changes():
    method = made()
    before = dict(method.named_parameters())
    laid = lay_out(method, torch.optim.SGD(method.student.parameters()))
    assert laid.mode == "none"
    assert all(parameter is before[name] for name, parameter in method.named_parameters())
    teacher = method.teacher
    with laid.whole_teacher(method):
        assert method.teacher is teacher
    laid.reduce(method.student)


def test_a_compiled_teacher_is_looked_at_as_a_plain_copy(monkeypatch):
    monkeypatch.setattr(layout, "compile_blocks", lambda *networks, **how: 0)
    method = made()
    laid = lay_out(method, torch.optim.SGD(method.student.parameters()), ParallelConfig(compile=True))
    shared = method.teacher
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.add_(1)
    with laid.whole_teacher(method):
        assert method.teacher is not shared
        assert not method.teacher.training
        for name, tensor in method.teacher.state_dict().items():
            assert tensor.equal(shared.state_dict()[name]), name
    assert method.teacher is shared
    assert isinstance(laid, Layout)


def test_graphs_are_refused_where_parameters_move():
    graphs = {"compile": True, "compile_mode": "reduce-overhead"}
    with pytest.raises(ConfigError, match=r"use parallel\.mode=ddp"):
        ParallelConfig(mode="fsdp", **graphs)
    with pytest.raises(ConfigError, match=r"add parallel\.compile=true"):
        ParallelConfig(compile_mode="reduce-overhead")


@pytest.mark.parametrize(("mode", "marks"), [("default", 0), ("reduce-overhead", 1)])
def test_a_step_of_graphs_begins_where_it_is_said(mode, marks, monkeypatch):
    """Which parts are compiled, how, and that the beginning of a step is marked for CUDA graphs alone."""
    asked, marked = [], []
    monkeypatch.setattr(layout, "compile_blocks", lambda *_, **how: asked.append(how))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(1))
    method = made()
    optimizer = torch.optim.SGD(method.student.parameters())
    how = lay_out(method, optimizer, ParallelConfig(compile=True, compile_mode=mode), padded=True)
    assert asked == [{"mode": mode, "heads": True}]
    how.begin_step()
    assert len(marked) == marks


@pytest.mark.parametrize("memory", [None, object()])
def test_a_guide_is_compiled_unless_it_remembers(memory, monkeypatch):
    """What it remembers is not asked again, so it would see another number of crops each time."""
    asked, method = [], made()
    monkeypatch.setattr(layout, "compile_blocks", lambda *networks, **_: asked.append(networks))
    method.has_guide, method.guide = True, SimpleNamespace(memory=memory)
    lay_out(method, torch.optim.SGD(method.student.parameters()), ParallelConfig(compile=True))
    assert asked == [(method.student, method.teacher, *([method.guide] if memory is None else []))]
