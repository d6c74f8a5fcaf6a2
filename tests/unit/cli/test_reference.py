# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from opendino.cli._reference import groups_of, meanings_of, page, settings_of
from opendino.cli.config import REFERENCE, configs
from opendino.cli.main import main


@dataclass(frozen=True)
class Inner:
    """A group.

    Attributes:
        rate: how fast it goes,
            in images a second.
        low, high: two limits.
    """

    rate: float = 2e-4
    low: int | None = None
    high: tuple[float, float] = (0.5, 1.0)


@dataclass(frozen=True)
class Outer:
    """All of it. More.

    Attributes:
        name: what it is called.

    Source: nowhere.
    """

    name: str = ""
    mode: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)


def test_settings_with_defaults_and_meanings():
    found = {one.key: one[1:] for one in settings_of(Outer)}
    assert found == {
        "name": ("str", '""', "what it is called."),
        "mode": ("a, b", "a", ""),
        "inner.rate": ("float", "0.0002", "how fast it goes, in images a second."),
        "inner.low": ("int or none", "null", "two limits."),
        "inner.high": ("tuple[float, float]", "[0.5, 1]", "two limits."),
    }


def test_groups_keep_their_first_sentence():
    groups = groups_of(Outer)
    assert [(name, what, len(settings)) for name, (what, settings) in groups.items()] == [
        ("", "All of it. More.", 2),
        ("inner", "A group.", 3),
    ]


def test_what_a_class_above_says_is_inherited():
    @dataclass(frozen=True)
    class Lower(Inner):
        """Another.

        Attributes:
            rate: its own.
        """

    assert meanings_of(Lower) == {"rate": "its own.", "low": "two limits.", "high": "two limits."}


def test_a_page_of_tables():
    text = page({"demo": Outer})
    assert "## opendino demo" in text
    assert "| `inner.low` | int or none | `null` | two limits. |" in text


def test_a_command_on_top_of_another_lists_what_is_new():
    @dataclass(frozen=True)
    class More(Outer):
        """More of it.

        Attributes:
            extra: what is new.
        """

        mode: Literal["a", "b"] = "b"
        extra: int = 0

    text = page({"demo": Outer, "demo2": More}).partition("## opendino demo2")[2]
    assert "The settings of `opendino demo`, and these:" in text
    assert "`extra`" in text
    assert "| `mode` | a, b | `b` |" in text
    assert "`name`" not in text
    assert "inner" not in text


@pytest.mark.parametrize("command", list(configs()))
def test_every_setting_says_what_it_means(command):
    silent = [one.key for one in settings_of(configs()[command]) if not one.meaning]
    assert silent == []


def test_the_reference_is_of_today(capsys):
    assert main(["config", "explain"]) == 0
    written = (Path(__file__).parents[3] / REFERENCE).read_text(encoding="utf-8")
    assert capsys.readouterr().out == written, f"run: opendino config explain > {REFERENCE}"
