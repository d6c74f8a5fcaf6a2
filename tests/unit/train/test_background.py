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
