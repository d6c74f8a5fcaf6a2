# SPDX-License-Identifier: Apache-2.0
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from opendino.errors import ConfigError
from opendino.train.metrics import LogConfig, MetricLog
from opendino.train.trackers import Tracker, open_tracker


@pytest.fixture
def wandb(monkeypatch):
    """A module of that name which remembers what it is told."""
    fake = ModuleType("wandb")
    fake.told, fake.broken = [], False

    def log(record, step):
        if fake.broken:
            raise ConnectionError("no network")
        fake.told.append((step, record))

    def init(**options):
        fake.options = options
        return SimpleNamespace(log=log, finish=lambda: fake.told.append("finished"))

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def mlflow(monkeypatch):
    fake = ModuleType("mlflow")
    fake.told, fake.started = [], []

    def start_run(run_id, run_name):
        fake.started.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "abc"))

    fake.set_experiment = lambda name: fake.told.append(name)
    fake.start_run = start_run
    fake.log_params = lambda settings: fake.told.append(settings)
    fake.log_metrics = lambda record, step: fake.told.append((step, record))
    fake.end_run = lambda: fake.told.append("ended")
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 3\ntrain: {iterations: 5}\n")
    return folder


def test_wandb_hears_everything_and_a_resume_goes_on_with_its_run(tmp_path, wandb):
    folder = run_folder(tmp_path)
    for _ in range(2):
        log = MetricLog(folder, 0, LogConfig(trackers=("wandb",), project="p"))
        log.write(1, {"loss": 2.0})
        log.to_disk()
        log.close()
        number = wandb.options["id"]
    assert wandb.told == [(1, {"loss": 2.0}), "finished"] * 2
    assert wandb.options["id"] == number
    assert wandb.options["resume"] == "allow"
    assert (wandb.options["project"], wandb.options["name"]) == ("p", "run")
    assert wandb.options["config"] == {"seed": 3, "train.iterations": 5}


def test_mlflow_likewise(tmp_path, mlflow):
    folder = run_folder(tmp_path)
    for _ in range(2):
        log = MetricLog(folder, 0, LogConfig(trackers=("mlflow",)))
        log.write(1, {"loss": 2.0})
        log.close()
    assert mlflow.started == [(None, "run"), ("abc", None)]
    settings = {"seed": "3", "train.iterations": "5"}
    told = [(1, {"loss": 2.0}), "ended"]
    assert mlflow.told == ["opendino", settings, *told, "opendino", *told]


def test_a_service_that_fails_does_not_end_the_run(tmp_path, wandb, caplog):
    log = MetricLog(tmp_path, 0, LogConfig(trackers=("wandb",)))
    wandb.broken = True
    with caplog.at_level(logging.WARNING, logger="opendino"):
        for step in (1, 2):
            log.write(step, {"loss": 1.0})
        log.close()
    assert caplog.text.count("wandb is left alone from here on (no network)") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_package_that_is_missing_or_will_not_open(tmp_path, wandb, monkeypatch):
    wandb.init = None
    with pytest.raises(ConfigError, match="wandb cannot be opened"):
        open_tracker("wandb", tmp_path, 0, "p")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"mlflow is not installed; pip install 'opendino\[track\]'"):
        open_tracker("mlflow", tmp_path, 0, "p")


def test_all_are_trackers(tmp_path, wandb, mlflow):
    for name in ("tensorboard", "wandb", "mlflow"):
        tracker = open_tracker(name, tmp_path, 0, "p")
        assert isinstance(tracker, Tracker)
        tracker.close()


def test_a_process_that_does_not_write_opens_nothing(tmp_path, wandb):
    log = MetricLog(tmp_path, 0, LogConfig(trackers=("wandb", "tensorboard")), writes=False)
    log.write(1, {"loss": 1.0})
    log.to_disk()
    log.close()
    assert wandb.told == []
    assert list(tmp_path.iterdir()) == []
