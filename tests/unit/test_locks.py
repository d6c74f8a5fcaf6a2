# SPDX-License-Identifier: Apache-2.0
import errno
import os
import threading
import types

import pytest

from opendino import locks
from opendino.errors import ConfigError
from opendino.locks import holding, locked


def test_one_holder_at_a_time_and_nothing_is_left(tmp_path):
    place = tmp_path / "lock"
    with locked(place, "taken"):
        with pytest.raises(ConfigError, match="taken"), locked(place, "taken", patience=0.0):
            pass
        with holding(place) as mine:
            assert not mine
        assert place.exists(), "he who was refused takes nothing away"
    assert not place.exists()
    with holding(place) as mine:
        assert mine


def test_a_lock_is_waited_for(tmp_path):
    place = tmp_path / "lock"
    lock = holding(place)
    assert lock.__enter__()
    timer = threading.Timer(0.2, lambda: lock.__exit__(None, None, None))
    timer.start()
    with holding(place, patience=30.0) as mine:
        assert mine
    timer.join()


def test_a_file_that_its_holder_has_removed_is_no_lock(tmp_path, monkeypatch):
    """Opened before its holder removed it: whoever comes later makes another file, and both would hold one."""
    place, opened = tmp_path / "lock", []
    real = os.open

    def late(*words, **named):
        handle = real(*words, **named)
        if not opened:
            place.unlink()
        opened.append(handle)
        return handle

    monkeypatch.setattr(locks.os, "open", late)
    with holding(place) as mine:
        assert mine
        assert len(opened) == 2
        with holding(place) as another:
            assert not another


def test_a_forked_child_holds_nothing_and_takes_nothing_away(tmp_path):
    place = tmp_path / "lock"
    with locked(place, "taken"):
        child = os.fork()
        if child == 0:
            with holding(place) as mine:
                os._exit(int(mine))
        assert os.waitpid(child, 0)[1] == 0
        assert place.exists()


def test_without_locks_everybody_goes_on(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    without = types.ModuleType("fcntl")
    vars(without).update(flock=refuse, LOCK_EX=2, LOCK_NB=4)
    monkeypatch.setattr(locks, "_fcntl", lambda: without)
    with locked(tmp_path / "lock", "taken"), locked(tmp_path / "lock", "taken"):
        pass
    monkeypatch.setattr(locks, "_fcntl", lambda: None)
    with locked(tmp_path / "lock", "taken"), locked(tmp_path / "lock", "taken"):
        assert list(tmp_path.iterdir()) == []
