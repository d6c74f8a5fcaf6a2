# SPDX-License-Identifier: Apache-2.0
import os
import time

import pytest

from opendino.cli import _speed
from opendino.models.presets import create


def test_rates_are_calls_a_second_of_all_in_turn():
    called = []
    works = [lambda: called.append("short") or time.sleep(0.01), lambda: called.append("long") or time.sleep(0.03)]
    short, long = _speed.rates(works, 0.1)
    assert 1 < long <= 1 / 0.03 < short <= 100  # a busy machine sleeps longer
    assert called == ["short", "long"] * (len(called) // 2) and len(called) >= 4
    assert len(_speed.rates([lambda: time.sleep(0.05)], 0.0)) == 1


def test_one_slow_call_does_not_count():
    naps = iter([0, 0.01, 0.01, 0.2, 0.01, 0.01, 0.01, 0.01, 0.01])
    (found,) = _speed.rates([lambda: time.sleep(next(naps))], 0.22)
    assert found > 20  # the mean would be below 15


def test_work_of_others_is_told_from_our_own(monkeypatch, tmp_path):
    """In ten seconds the two processors of ours have worked 14 s together, six of them for this process."""
    monkeypatch.setattr(_speed, "usable_processors", lambda: {1, 10})
    stat, clocks = tmp_path / "stat", {"process_time": 5.0, "perf_counter": 100.0}
    a_second = os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(_speed, "_PROCESSORS", stat)
    for name in clocks:
        monkeypatch.setattr(_speed.time, name, lambda name=name: clocks[name])

    def write(user, nice, system):
        """Of processor 10, beside one more of ours, which idles, and one of others."""
        lines = "cpu  7 7 7 7", f"cpu0 {int(user) * 99} 2 3 4", "cpu1 1 2 3 4"
        ours = " ".join(str(part * a_second) for part in (user, nice, system))
        stat.write_text("\n".join([*lines, f"cpu10 {ours} 999 9 9", "intr 5 0", ""]))

    write(70, 10, 20)
    others = _speed.Others()
    clocks.update(process_time=11.0, perf_counter=110.0)
    write(80, 11, 23)
    assert others.processors() == pytest.approx(0.8)
    for other in ("something else\n", "cpu  1 2 3 4\ncpu1 1 2 3 4\n"):
        stat.write_text(other)
        assert others.processors() is None
    stat.unlink()
    assert _speed.Others().processors() is None


def test_a_busy_machine_is_said_to_be_busy():
    assert "of which other programs used 0.1 meanwhile" in _speed._machine(0.1)
    assert "busy" not in _speed._machine(0.1)
    assert "busy machine" in _speed._machine(0.9)
    assert _speed._machine(None).split()[1].startswith("processor")


def test_every_row_has_a_number(monkeypatch):
    monkeypatch.setattr("opendino.models.presets.create", lambda name: create("vit_nano4", depth=1))
    rows = dict(_speed.measure(0.0, "vit_nano4"))
    assert float(rows["decoding"].split()[0]) > 0
    assert float(rows["vit_nano4 fp32"].split()[0]) > 0
    ways = [name.removeprefix("vit_nano4 ") for name in rows if name.startswith("vit_nano4 ")]
    assert ways == ["fp32", "bf16", "fp32 optimized", "bf16 optimized"]
    assert all(float(rows[f"vit_nano4 {way}"].split()[0]) > 0 for way in ways)
    assert {"attention", "linear layers", "bf16", "processor", "decoder", "optimize", "memory", "machine"} <= set(rows)
    assert rows["memory"].startswith("in a training what is freed ")
    assert "of fp32's speed" in rows["bf16"]


def test_what_is_optimized_is_compared_with_its_own_precision():
    rates = {"fp32": 4.0, "bf16": 8.0, "fp32 optimized": 5.0, "bf16 optimized": 12.0}
    assert _speed._optimized(rates).startswith("1.25 in fp32 and 1.50 in bf16 of the plain model's speed; ")


def test_bf16_is_judged_by_what_was_measured():
    wide = ["avx2", "amx_bf16"]
    assert _speed._half(0.5, wide) == "slower here: 0.50 of fp32's speed, with amx_bf16"
    assert _speed._half(1.05, wide).startswith("not faster")
    assert _speed._half(1.8, []) == "faster here: 1.80 of fp32's speed"
