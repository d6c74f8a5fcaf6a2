# SPDX-License-Identifier: Apache-2.0
import threading

import pytest

from opendino.errors import CheckpointError
from opendino.train.background import Background


@pytest.mark.parametrize("threaded", [False, True])
def test_an_error_comes_to_light_once_and_at_the_next_wait(threaded):
    def fail():
        raise CheckpointError("full")

    work = Background(threaded)
    work.wait()
    work.start(fail)
    with pytest.raises(CheckpointError, match="full"):
        work.wait()
    work.wait()


def test_a_job_runs_beside_its_caller():
    gate, done = threading.Event(), []
    work = Background(threaded=True)
    work.start(lambda: (gate.wait(10), done.append(1)))
    assert done == []
    gate.set()
    work.wait()
    assert done == [1]


def test_a_job_that_does_not_end_is_given_up_where_the_run_has_failed(caplog):
    gate = threading.Event()
    work = Background(threaded=True)
    work.settle()
    work.start(gate.wait)
    work.settle(0.01)
    assert "not through after 0.01 s" in caplog.text
    gate.set()
    work.wait()
    work.start(lambda: 1 / 0)
    work.settle()
    assert "division by zero" in caplog.text
