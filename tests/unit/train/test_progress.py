# SPDX-License-Identifier: Apache-2.0
import logging

import pytest

from opendino.train.progress import ProgressBar, Speed, duration


def test_speed_by_hand():
    speed = Speed()
    assert (speed.images_per_second, speed.data_wait, speed.seconds_per_step) == (0, 0, 0)
    speed.add(images=64, seconds=2.0, waited=0.5)
    assert (speed.images_per_second, speed.data_wait, speed.seconds_per_step) == (32, 0.25, 2)
    # A second later than 2 s of 60: the first step keeps 58/60... of its weight, as the second step took 3 s: 57/60.
    speed.add(images=64, seconds=3.0, waited=0.0)
    kept = 57 / 60
    assert speed.images_per_second == pytest.approx((64 * kept + 64) / (2 * kept + 3))
    assert speed.data_wait == pytest.approx(0.5 * kept / (2 * kept + 3))
    assert speed.seconds_per_step == pytest.approx((2 * kept + 3) / (kept + 1))


def test_an_old_speed_is_forgotten():
    speed = Speed(window=10.0)
    speed.add(1000, 9.0, 9.0)
    speed.add(10, 20.0, 0.0)
    assert (speed.images_per_second, speed.data_wait) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (59.6, "1:00"),
        (125, "2:05"),
        (3723, "1:02:03"),
        (86400, "1 day 0:00:00"),
        (187507, "2 days 4:05:07"),
    ],
)
def test_duration(seconds, text):
    assert duration(float(seconds)) == text


def test_plain_lines_where_there_is_no_terminal(caplog):
    logging.getLogger("opendino").propagate = True
    speed = Speed()
    speed.add(50, 1.0, 0.1)
    with caplog.at_level(logging.INFO, logger="opendino"), ProgressBar(100, 10, every=0.0) as bar:
        bar.update(11, 7.25, speed)
    assert caplog.messages == ["step 11/100  loss 7.2500  50 img/s  10 % waiting for data  1:29 left"]


def test_plain_lines_come_now_and_then_and_at_the_end(caplog):
    logging.getLogger("opendino").propagate = True
    with caplog.at_level(logging.INFO, logger="opendino"), ProgressBar(5, every=1000.0) as bar:
        for step in range(1, 6):
            bar.update(step, 1.0, Speed())
    assert [message.split()[1] for message in caplog.messages] == ["5/5"]


def test_lines_come_more_rarely_in_a_long_run(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("opendino.train.progress.time.monotonic", lambda: clock[0])
    bar = ProgressBar(10**9, every=10.0)
    times = []
    for clock[0] in range(0, 100_000, 5):
        if bar._is_time():
            times.append(clock[0])
            bar._last = clock[0]
    assert times[:4] == [5, 15, 25, 35]
    assert times[-1] - times[-2] > 900
    assert len(times) < 600


def test_nothing_from_processes_that_are_not_the_first(caplog, capfd):
    logging.getLogger("opendino").propagate = True
    with caplog.at_level(logging.INFO, logger="opendino"), ProgressBar(5, shown=False, every=0.0) as bar:
        bar.update(5, 1.0, Speed())
    assert caplog.messages == []
    assert capfd.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    speed = Speed()
    speed.add(50, 1.0, 0.1)
    with ProgressBar(100, 10) as bar:
        bar.update(11, 7.25, speed)
    shown = capfd.readouterr().err
    assert "11/100" in shown
    assert "loss 7.2500  50 img/s  10 % waiting for data" in shown
