# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opendino.errors import ConfigError, DataError
from opendino.stages import engines
from opendino.stages.engines import Engine, meet, run_parts, run_stage, run_whole
from opendino.stages.folder import Stage, marker, write_table


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


def test_a_part_that_nobody_sees_is_told(tmp_path):
    (tmp_path / "s").mkdir()
    with pytest.raises(DataError, match=r"parts \[1\] are missing"):
        run_parts(Engine(), 2, Squares(tmp_path / "s", forgets=1))


def test_torchrun_wants_a_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node"):
        meet(Engine("torchrun"))
    assert not meet(Engine())


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
