# SPDX-License-Identifier: Apache-2.0
import logging

from opendino.eval import _pace


def test_first_and_last_and_one_in_ten_seconds_are_told(monkeypatch, caplog):
    clock = [100.0]
    monkeypatch.setattr(_pace.time, "monotonic", lambda: clock[0])
    caplog.set_level(logging.INFO, logger="opendino")
    pace, told = _pace.Pace("segment", 9), []
    for step in range(9):
        if pace.due(step):
            pace.tell(step, f"loss {step}")
            told.append(step)
        clock[0] += 4.0
    assert told == [0, 3, 6, 8]
    assert caplog.messages == [
        "segment: step 1 of 9, loss 0",
        "segment: step 4 of 9, loss 3; 0:20 left",  # three steps took 12 seconds, five are left
        "segment: step 7 of 9, loss 6; 0:08 left",
        "segment: step 9 of 9, loss 8",
    ]


def test_a_training_that_goes_on_counts_the_time_of_its_own_steps(monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr(_pace.time, "monotonic", lambda: clock[0])
    caplog.set_level(logging.INFO, logger="opendino")
    pace = _pace.Pace("linear", 1000)
    assert pace.due(900)
    clock[0] = 10.0
    assert pace.due(909)
    pace.tell(909, "loss 1")
    assert caplog.messages == ["linear: step 910 of 1000, loss 1; 1:40 left"]  # 9 steps in 10 seconds, 90 are left
