# SPDX-License-Identifier: Apache-2.0
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from opendino.config import fields_of
from opendino.errors import CheckpointError, ConfigError
from opendino.train import run_folder
from opendino.train.adapt_config import AdaptConfig
from opendino.train.config import PretrainConfig
from opendino.train.distill import DistillRunConfig
from opendino.train.run_folder import Claim, Stored


@dataclass(frozen=True)
class Loader:
    workers: int = 0
    prefetch: int = 2
    max_bad_rate: float = 0.01
    min_bad_count: int = 10
    shuffle: bool = True


@dataclass(frozen=True)
class Train:
    device: str = "auto"


@dataclass(frozen=True)
class Config:
    data: str = "x"
    output_dir: str = "runs/a"
    scale: tuple[float, float] = (0.3, 1.0)
    derived: int | None = None
    loader: Loader = field(default_factory=Loader)
    train: Train = field(default_factory=Train)


def stored_by(folder, config, chosen=None, facts=None):
    run_folder.write(folder, config, Stored({}, chosen or {}, facts or {"images": 9}, ("opendino", "pretrain")))
    return run_folder.read(folder)


def test_what_was_written_is_read(tmp_path):
    stored = stored_by(tmp_path, Config(), {"loader.workers": 3})
    assert stored.settings["loader.prefetch"] == 2
    assert stored.settings["scale"] == [0.3, 1.0]
    assert (stored.chosen, stored.facts) == ({"loader.workers": 3}, {"images": 9})
    assert stored.command == ("opendino", "pretrain")
    run = json.loads((tmp_path / "run.json").read_text())
    assert {"opendino", "torch", "numpy"} <= run["versions"].keys()
    run_folder.check_same(tmp_path, stored, Config(), {"images": 9})


def test_new_and_empty_folders_hold_no_run(tmp_path):
    assert run_folder.read(tmp_path / "new") is None
    assert run_folder.read(tmp_path) is None
    (tmp_path / "config.yaml").write_text("data: x\n")  # killed before run.json was there
    assert run_folder.read(tmp_path) is None


@pytest.mark.parametrize("left", [".config.yaml.77.partial", ".run.json.77.partial", "run.lock"])
def test_what_a_killed_start_leaves_is_ours(tmp_path, left):
    (tmp_path / left).write_text("half")
    assert run_folder.read(tmp_path) is None
    stored_by(tmp_path, Config())
    assert {path.name for path in tmp_path.iterdir()} - {left} == {"config.yaml", "run.json"}


HOLD = """
import os, pathlib, sys, time
from opendino.train import run_folder
with run_folder.locked(pathlib.Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(60)  # a worker that outlives its parent
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_has_one_writer_and_a_killed_one_leaves_no_lock(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process is writing this run"), run_folder.locked(tmp_path):
            pass
        process.kill()
        process.wait()
        with run_folder.locked(tmp_path):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def test_a_second_start_leaves_the_first_ones_files_alone(tmp_path):
    folder = tmp_path / "run"
    with Claim(folder) as first:
        first.make()
        (folder / "config.yaml").write_text("")
        with pytest.raises(ConfigError, match="another process is writing this run"), Claim(folder) as second:
            second.make()
        assert (folder / "config.yaml").exists()
        (folder / "run.json").write_text("{}")
        first.keep()
    with pytest.raises(ConfigError, match="has begun a run here meanwhile"), Claim(folder) as late:
        late.make()
    assert (folder / "run.json").exists()


def test_unreadable_run(tmp_path):
    stored_by(tmp_path, Config())
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        run_folder.read(tmp_path)


def test_only_what_changes_no_number_may_change(tmp_path):
    stored = stored_by(tmp_path, Config())
    run_folder.check_same(tmp_path, stored, Config(output_dir="runs/moved", loader=Loader(workers=8, prefetch=9)), {})
    advised = Config(loader=Loader(max_bad_rate=0.5, min_bad_count=99), train=Train("cpu"))
    run_folder.check_same(tmp_path, stored, advised, {})
    with pytest.raises(ConfigError) as caught:
        run_folder.check_same(tmp_path, stored, Config(data="y", loader=Loader(shuffle=False)), {"images": 10})
    message = str(caught.value)
    for part in (
        "data was x and is now y",
        "loader.shuffle was True and is now False",
        "images was 9 and is now 10",
    ):
        assert part in message
    assert "\n" not in message


def test_settings_that_may_change_exist_and_are_told():
    known = {key for kind in (PretrainConfig, AdaptConfig, DistillRunConfig) for key in fields_of(kind)}
    told = (Path(__file__).parents[3] / "docs" / "tutorials" / "continue.md").read_text()
    for name in run_folder.FREE_TO_CHANGE:
        assert any(key.startswith(name) for key in known), name
        assert f"`{name.removesuffix('.')}`" in told, name
    assert {"loader.thread", "train.keep_memory"} <= set(run_folder.FREE_TO_CHANGE)


def test_each_continuation_is_noted_with_what_has_changed(tmp_path):
    stored = stored_by(tmp_path, Config())
    before = json.loads((tmp_path / "run.json").read_text())
    del stored.settings["loader.prefetch"]  # as if it had come since
    for step, workers in ((3, 0), (7, 8)):
        computing = {"threads": step, "processes": 1, "device": "cpu"}
        config = Config(derived=5, loader=Loader(workers=workers, prefetch=workers + 2))
        run_folder.write_continued(tmp_path, stored, config, step, computing)
    run = json.loads((tmp_path / "run.json").read_text())
    noted = run.pop("continued")
    assert run == before
    again = run_folder.read(tmp_path)
    assert again.facts == {"images": 9, "threads": 7, "processes": 1, "device": "cpu"}, "the newest"
    assert [one["facts"]["threads"] for one in noted] == [3, 7]
    assert [(one["step"], one["settings"]) for one in noted] == [
        (3, {"derived": 5}),
        (7, {"derived": 5, "loader.workers": 8, "loader.prefetch": 10}),
    ]
    assert noted[0]["command"] == sys.argv
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be read"):
        run_folder.write_continued(tmp_path, stored, Config(), 9, {})


def test_a_run_of_an_older_version_continues(tmp_path):
    """It may lack a setting that has come since, which had its default then, and have one that has gone."""
    stored = stored_by(tmp_path, Config())
    del stored.settings["loader.shuffle"]
    del stored.settings["derived"]
    stored.settings["gone"] = 1
    run_folder.check_same(tmp_path, stored, Config(derived=3), {})
    with pytest.raises(ConfigError, match=r"loader\.shuffle was True and is now False"):
        run_folder.check_same(tmp_path, stored, Config(loader=Loader(shuffle=False)), {})


@pytest.mark.parametrize(
    ("kind", "verb"), [(PretrainConfig, "pretrain"), (DistillRunConfig, "distill"), (AdaptConfig, "adapt")]
)
def test_a_run_of_another_kind_is_told_as_such_alone(tmp_path, kind, verb):
    stored = stored_by(tmp_path, kind())
    for ours in (PretrainConfig, DistillRunConfig, AdaptConfig):
        if ours is kind:
            run_folder.check_kind(tmp_path, stored, ours)
            continue
        with pytest.raises(ConfigError) as caught:
            run_folder.check_same(tmp_path, stored, ours(), {"images": 3})
        said = str(caught.value)
        assert f"holds a run of opendino {verb}, which opendino " in said
        assert said.endswith(f"name another output_dir, or continue that run by opendino {verb}")
        assert " was " not in said


@pytest.mark.parametrize("spelled", ["x/", "./x", "y/../x", "absolute"])
def test_the_same_images_may_be_spelled_otherwise(tmp_path, monkeypatch, spelled):
    monkeypatch.chdir(tmp_path)
    stored = stored_by(tmp_path, Config(data="x"))
    run_folder.check_same(tmp_path, stored, Config(data=str(tmp_path / "x") if spelled == "absolute" else spelled), {})
    with pytest.raises(ConfigError, match="data was x and is now x2"):
        run_folder.check_same(tmp_path, stored, Config(data="x2"), {})


def test_a_start_that_fails_takes_its_folders_back(tmp_path):
    folder = tmp_path / "runs" / "deep" / "one"
    with pytest.raises(KeyboardInterrupt), Claim(folder) as claim:
        claim.make()
        (folder / "config.yaml").write_text("")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_is_left_as_it_was(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(ValueError, match="x"), Claim(folder) as claim:
        claim.make()
        (folder / "config.yaml").write_text("")
        (folder / "tensorboard").mkdir()
        raise ValueError("x")
    assert list(folder.iterdir()) == []


def test_somebody_elses_file_beside_the_run_is_spared(tmp_path):
    folder = tmp_path / "runs" / "one"
    with pytest.raises(ValueError, match="x"), Claim(folder) as claim:
        claim.make()
        (tmp_path / "runs" / "other").write_text("")
        raise ValueError("x")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_under_way_stays(tmp_path, kept):
    folder = tmp_path / "one"
    with pytest.raises(ValueError, match="x"), Claim(folder, kept=kept) as claim:
        claim.make()
        (folder / "config.yaml").write_text("")
        claim.keep()
        raise ValueError("x")
    assert (folder / "config.yaml").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"), Claim(tmp_path / "file" / "run") as claim:
        claim.make()
