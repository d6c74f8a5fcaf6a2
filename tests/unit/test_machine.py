# SPDX-License-Identifier: Apache-2.0
import ast
import os
from pathlib import Path

import pytest

from opendino import machine


@pytest.mark.parametrize(("usable", "local", "expected"), [(6, "1", 6), (6, "2", 3), (1, "4", 1)])
def test_cores_are_those_that_the_process_may_use(monkeypatch, usable, local, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert machine.cores() == expected


def test_where_the_system_does_not_say_all_are_ours(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine.usable_cores() == 3


def test_cores_are_counted_in_one_place():
    home = Path(machine.__file__)
    for path in home.parent.rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert path == home or "sched_getaffinity" not in names, path
