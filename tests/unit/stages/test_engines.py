# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opendino.distributed import is_initialized
from opendino.errors import ConfigError, DataError
from opendino.stages import engines
from opendino.stages.engines import Engine, met, run_parts, run_stage, run_whole
from opendino.stages.folder import Stage, claimed, marker, write_table


@dataclass(frozen=True)
class Squares:
    """Task of the tests: the square of the part's number; notes each call beside the folder."""

    folder: Path
    breaks_at: int = -1
    forgets: int = -1

    def __call__(self, part):
        with (self.folder.parent / "calls").open("a") as file:
            file.write(f"{part} ")
        if part == self.breaks_at:
            raise DataError("part is broken; mend it")
        if part != self.forgets:
            write_table(marker(self.folder, part), pa.table({"x": [part * part]}))


def calls(folder):
    return [int(word) for word in (folder.parent / "calls").read_text().split()]


def test_a_stage_is_made_once(tmp_path):
    stage = Stage(tmp_path / "s", "squares", {}, {})
    assert run_stage(stage, Engine(), 3, Squares(stage.folder), lambda: {"n": 3})
    assert not run_stage(stage, Engine(), 3, Squares(stage.folder), lambda: {"n": 3})
    assert calls(stage.folder) == [0, 1, 2]
    assert pq.read_table(marker(stage.folder, 2))["x"].to_pylist() == [4]


def test_a_stage_without_parts_is_made_once(tmp_path):
    stage, made = Stage(tmp_path / "s", "whole", {}, {}), []
    assert run_whole(stage, lambda: made.append(1) or {"n": 1})
    assert not run_whole(stage, lambda: made.append(1) or {"n": 1})
    assert made == [1]


def test_after_an_error_finished_parts_stay(tmp_path):
    stage = Stage(tmp_path / "s", "squares", {}, {})
    with pytest.raises(DataError, match="mend it"):
        run_stage(stage, Engine(), 4, Squares(stage.folder, breaks_at=2), dict)
    run_stage(stage, Engine(), 4, Squares(stage.folder), dict)
    assert calls(stage.folder) == [0, 1, 2, 2, 3]


ORPHANS = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import sleepers
from opendino.stages.engines import Engine, run_parts
if __name__ == "__main__":
    run_parts(Engine(workers=2), 2, sleepers.Sleeps(Path(sys.argv[1]) / "s"))
"""
SLEEPERS = """
import os, time
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class Sleeps:
    folder: Path

    def __call__(self, part):
        (self.folder.parent / f"begun-{part}").write_text(str(os.getpid()))
        time.sleep(120)
"""


@pytest.mark.slow
def test_workers_end_with_the_process_that_was_killed(tmp_path):
    """Else they hold on to their parts, and the next start finds these missing."""
    (tmp_path / "sleepers.py").write_text(SLEEPERS)
    (tmp_path / "script.py").write_text(ORPHANS)
    main = subprocess.Popen([sys.executable, tmp_path / "script.py", tmp_path])
    pids, until = [], time.monotonic() + 200
    while len(pids) < 2:
        assert time.monotonic() < until and main.poll() is None
        time.sleep(0.05)
        pids = [
            text for part in (0, 1) if (place := tmp_path / f"begun-{part}").exists() and (text := place.read_text())
        ]
    main.kill()
    main.wait()
    until = time.monotonic() + 60
    for part in (0, 1):
        free = False
        while not free:  # long before the two minutes of a part are over
            assert time.monotonic() < until
            with claimed(tmp_path / "s", part) as free:
                pass
            time.sleep(0.05)


def test_a_part_that_nobody_sees_is_told(tmp_path):
    stage = Stage(tmp_path / "s", "squares", {}, {})
    with pytest.raises(DataError, match=r"parts \[1\] are missing"):
        run_stage(stage, Engine(), 2, Squares(stage.folder, forgets=1), dict)


def test_torchrun_wants_a_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node"), met(Engine("torchrun")):
        pass
    with met(Engine()):
        assert not is_initialized()


def test_ray_is_an_extra(tmp_path):
    try:
        import ray  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"opendino\[ray\]"):
            run_parts(Engine("ray"), 2, Squares(tmp_path))
    else:
        pytest.skip("ray is installed")


def test_a_single_part_needs_no_cluster(tmp_path):
    run_parts(Engine("ray"), 1, Squares(tmp_path / "s"))
    assert len(list((tmp_path / "s").glob("part-*.parquet"))) == 1


def test_which_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    alone = engines._cluster(Engine("ray", workers=50))
    assert (alone["address"], alone["num_cpus"], alone["include_dashboard"]) == ("local", 51, False)
    assert engines._cluster(Engine("ray", address="ray://head:10001")) == {"address": "ray://head:10001"}
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert engines._cluster(Engine("ray")) == {"address": "auto"}


def test_an_engine_has_workers():
    with pytest.raises(ConfigError, match="1 or more"):
        Engine(workers=0)
