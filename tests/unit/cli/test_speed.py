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
    assert {"attention", "linear layers", "bf16", "processor"} <= set(rows)
