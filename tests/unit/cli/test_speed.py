# SPDX-License-Identifier: Apache-2.0
import time

from opendino.cli import _speed
from opendino.models.presets import create


def test_a_rate_is_calls_a_second():
    assert 1 < _speed.rate(lambda: time.sleep(0.02), 0.2) <= 50  # a busy machine sleeps longer
    assert _speed.rate(lambda: time.sleep(0.05), 0.0) < 21


def test_every_row_has_a_number(monkeypatch):
    monkeypatch.setattr("opendino.models.presets.create", lambda name: create("vit_nano4", depth=1))
    rows = dict(_speed.measure(0.0, "vit_nano4"))
    assert float(rows["decoding"].split()[0]) > 0
    assert float(rows["vit_nano4 fp32"].split()[0]) > 0
    ways = [name.removeprefix("vit_nano4 ") for name in rows if name.startswith("vit_nano4 ")]
    assert ways == ["fp32", "bf16", "fp32 optimized", "bf16 optimized"]
    assert all(float(rows[f"vit_nano4 {way}"].split()[0]) > 0 for way in ways)
    assert {"attention", "linear layers", "bf16", "processor", "decoder", "optimize", "memory"} <= set(rows)
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
