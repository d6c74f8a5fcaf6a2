# SPDX-License-Identifier: Apache-2.0
import signal
from types import SimpleNamespace

from opendino.cli.main import main
from opendino.train import demo as module
from opendino.train.demo import Margin, Note
from opendino.train.demo_report import HEALTH
from opendino.train.loop import Stopped


def found(config, whole=True):
    measured = SimpleNamespace(
        knn={"pixels": 63.21, "random": 46.0, "trained": 62.0},
        logreg={"pixels": 39.0, "random": 51.0, "trained": 64.0},
        health=dict.fromkeys(HEALTH, 0.5),
        health_random=dict.fromkeys(HEALTH, 0.25),
        pair=SimpleNamespace(val=range(2000)),
        margins=lambda: [
            Margin("trained over untrained", 16.0, 12),
            Margin("trained over pixels", -1.21, 0, strict=True),
            Margin("entropy", 0.5, 0.9, strict=True, unit=""),
        ],
        notes=(Note("trained", "logreg", "the best C lies at the edge"),),
    )
    outcome = SimpleNamespace(images_seen=102_400)
    return SimpleNamespace(config=config, measured=measured, outcome=outcome, seconds=421.4, whole=whole)


def test_words_are_parted_and_the_table_says_what_was_not_met(monkeypatch, capsys, tmp_path):
    seen = []
    monkeypatch.setattr(
        module, "demo", lambda recipe, config, words: seen.append((recipe, config, words)) or found(config)
    )
    assert main(["demo", "seed=3", f"output_dir={tmp_path}", "train.iterations=7"]) == 0
    ((recipe, config, words),) = seen
    assert (recipe.stem, config.seed, words) == ("demo_garments", 3, ["train.iterations=7"])
    shown = capsys.readouterr().out
    assert "2,000 test images; 102,400 images seen without labels; seed 3; 421 s in all" in shown
    assert ["raw", "pixels", "63.2", "39.0"] in [line.split() for line in shown.splitlines()]
    assert "met      trained over untrained: +16.0 points, wanted at least +12" in shown
    assert "NOT MET  trained over pixels: -1.2 points, wanted more than 0" in shown
    assert "NOT MET  entropy: 0.500, wanted more than 0.9" in shown
    assert "note: trained teacher, logistic regression: the best C lies at the edge" in shown.splitlines()


def test_nothing_is_judged_that_was_cut_down(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(module, "demo", lambda recipe, config, words: found(config, whole=False))
    assert main(["demo", "images=50", f"output_dir={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "cut down, not judged  trained over untrained: +16.0 points, wanted at least +12" in shown
    assert "NOT MET" not in shown


def test_stopped(monkeypatch, capsys, tmp_path):
    def stop(*_):
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(module, "demo", stop)
    assert main(["demo", f"output_dir={tmp_path}"]) == 143
    assert "the same command continues" in capsys.readouterr().err
