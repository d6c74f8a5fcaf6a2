# SPDX-License-Identifier: Apache-2.0
import itertools
import json

import pytest
import torch

from opendino.checkpoint.hub import load_backbone
from opendino.checkpoint.store import CheckpointConfig
from opendino.config import load
from opendino.data.loaders import BadImages
from opendino.errors import TrainingError
from opendino.eval.watch import Watch, WatchConfig
from opendino.train.config import PretrainConfig, fill_in
from opendino.train.metrics import LogConfig, MetricLog
from opendino.train.pretrain import build_run, open_images
from opendino.train.probe import Probe, ProbeConfig
from opendino.train.upkeep import Share, Upkeep

RECORD = {"loss": 1.0, "teacher_temp": 0.05}


@pytest.fixture
def make(tiny_words, tmp_path):
    def build(**cadence):
        config = load(PretrainConfig, None, [*tiny_words, f"train.iterations={cadence.get('steps', 6)}"])
        dataset = open_images(config)
        run = build_run(fill_in(config, 40))
        metrics = MetricLog(tmp_path, 0, LogConfig(every=cadence.get("log", 1), trackers=()))
        looks = ProbeConfig(every=cadence.get("knn", 0), share=cadence.get("share", 1.0))
        probe = Probe(looks, dataset, torch.device("cpu"), "fp32")
        bad = BadImages("pictures", 1.0, 0, 40)
        minutes = cadence.get("minutes", 30.0)
        checkpoints = CheckpointConfig(every=cadence.get("checkpoint", 1000), minutes=minutes, keep=9)
        return Upkeep(tmp_path, metrics, probe, checkpoints, 8, bad), run

    return build


def walk(upkeep, run):
    upkeep.begin(run)
    for step in range(1, run.total + 1):
        run.step = step
        upkeep.after(run, RECORD)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_everything_at_its_time_and_at_the_end(make, tmp_path):
    upkeep, run = make(log=4, knn=5, checkpoint=4)
    walk(upkeep, run)  # six steps
    assert [record["step"] for record in records(tmp_path) if "loss" in record] == [1, 4, 6]
    assert [record["step"] for record in records(tmp_path) if "health/effective_rank" in record] == [0, 5, 6]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000004", "step_00000006"]


@pytest.mark.parametrize(
    ("minutes", "every", "main", "wanted"),
    [
        (0.5, 1000, True, [3, 6]),  # 36 s after the start, and at the end
        (0.2, 1000, True, [1, 2, 3, 4, 5, 6]),
        (0.5, 2, True, [2, 4, 6]),  # each of these begins the time anew
        (0.5, 4, True, [3, 4, 6]),
        (0.0, 1000, True, [6]),
        (30.0, 1000, True, [6]),
        (0.2, 1000, False, [6]),  # process 0 says it to all, by its clock
    ],
)
def test_a_checkpoint_is_written_when_time_has_passed(make, tmp_path, monkeypatch, minutes, every, main, wanted):
    """A clock of our own: a step takes twelve seconds."""
    clock = [1000.0]
    monkeypatch.setattr("opendino.train.upkeep.time.monotonic", lambda: clock[0])
    upkeep, run = make(minutes=minutes, checkpoint=every)
    for step in range(1, run.total + 1):
        run.step = step
        clock[0] += 12
        upkeep.after(run, RECORD)
        with monkeypatch.context() as other:
            other.setattr("opendino.train.upkeep.is_main", lambda: main)
            overdue = upkeep.overdue()
        if overdue:
            upkeep.save(run)
    assert [int(path.name[-8:]) for path in sorted((tmp_path / "checkpoints").iterdir())] == wanted


def test_never_looking_is_never(make, tmp_path):
    upkeep, run = make()
    walk(upkeep, run)
    assert not [record for record in records(tmp_path) if "health/effective_rank" in record]


@pytest.mark.parametrize(("cost", "every", "share"), [(3, 20, 0.05), (1, 10, 0.05), (0.01, 10, 0.05), (3, 20, 1.0)])
def test_looks_that_would_take_too_much_time_are_left_out(make, monkeypatch, caplog, cost, every, share):
    """A clock of our own: a step takes a second, a look `cost` seconds."""
    caplog.set_level("INFO", logger="opendino")
    clock, looks = [0.0], []
    monkeypatch.setattr("opendino.train.upkeep.time.perf_counter", lambda: clock[0])
    upkeep, run = make(knn=every, share=share, steps=400, log=1000)

    def look(run, _temp):
        clock[0] += cost
        looks.append(run.step)
        return {"health/effective_rank": 2.0}

    monkeypatch.setattr(upkeep, "probe", type("", (), {"__call__": lambda *_: look(run, 0), **vars(upkeep.probe)})())
    monkeypatch.setattr(upkeep, "save", lambda _: None)
    upkeep.begin(run)
    for step in range(1, run.total + 1):
        clock[0] += 1.0
        run.step = step
        upkeep.after(run, RECORD)
    record = upkeep._looking.record()
    assert record["looking_seconds"] == pytest.approx(cost * len(looks))
    assert looks[0] == 0
    assert looks[-1] == run.total
    if share == 1 or cost < 0.1:
        assert looks == list(range(0, run.total + 1, every))
        assert "no look" not in caplog.text
    else:
        # With one more it would have been above: neither too many looks, nor needlessly few.
        assert record["looking_share"] <= share < (record["looking_seconds"] + 2 * cost) / (run.total + cost)
        assert max(b - a for a, b in itertools.pairwise(looks[1:])) <= every + cost / share
        assert "which would be more than knn.share = 0.05 of the time" in caplog.text


def test_images_are_counted(make, tmp_path):
    upkeep, run = make()
    upkeep.bad.failed = 3
    walk(upkeep, run)
    assert [(record["images_seen"], record["skipped"]) for record in records(tmp_path)] == [
        (8 * n, 3) for n in range(1, 7)
    ]
    state = json.loads((tmp_path / "checkpoints" / "step_00000006" / "state.json").read_text())
    assert (state["meta"]["images_seen"], state["meta"]["images_bad"], state["meta"]["world_size"]) == (48, 3, 1)


def test_the_weights_are_the_teachers_backbone(make, tmp_path):
    upkeep, run = make()
    with torch.no_grad():
        for parameter in run.method.teacher.parameters():
            parameter.add_(0.5)
    upkeep.save(run)
    backbone = load_backbone(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    assert backbone(images).equal(run.method.teacher["backbone"](images))
    assert backbone.input_spec == run.method.teacher["backbone"].input_spec


def test_a_collapse_is_named_as_the_settings_say(make, caplog, monkeypatch):
    upkeep, run = make(knn=2)

    class Collapsed:
        config = upkeep.probe.config

        def __call__(self, *_):
            return {"health/effective_rank": 1.0, "health/mean_cosine": 1.0}

    monkeypatch.setattr(upkeep, "probe", Collapsed())
    monkeypatch.setattr(upkeep, "_watch", Watch(WatchConfig(start=0, patience=2)))
    for run.step in (0, 2, 4):
        upkeep._look_if_due(run, 0.05)
    assert caplog.text.count("collapse at step 2: features are constant") == 1
    monkeypatch.setattr(upkeep, "_watch", Watch(WatchConfig(action="stop", start=0, patience=1)))
    with pytest.raises(TrainingError, match="collapse at step 4"):
        upkeep._look_if_due(run, 0.05)


@pytest.mark.parametrize(("every", "total", "advised"), [(4, 4, None), (4, 39, None), (4, 40, "knn.every=40 ")])
def test_no_advice_beyond_the_runs_own_length(monkeypatch, caplog, every, total, advised):
    """Half of the time, by a clock of our own: ten times rarer looks would take a twentieth."""
    caplog.set_level("INFO", logger="opendino")
    clock = [0.0]
    monkeypatch.setattr("opendino.train.upkeep.time.perf_counter", lambda: clock[0])
    share = Share()
    with share:
        clock[0] += 1.0
    clock[0] += 1.0
    share.tell(every, total)
    assert "looking at the teacher took 1.0 s, 50.0 % of the time" in caplog.text
    assert (advised in caplog.text) if advised else ("knn.every" not in caplog.text)
