# SPDX-License-Identifier: Apache-2.0
"""What the demonstration compares and promises; it runs end to end in tests/integration/test_demo.py."""

import json
from types import SimpleNamespace

import pytest
import torch

from opendino.data.datasets import ImageDataset
from opendino.eval._data import LabelledPair
from opendino.eval._features import Features
from opendino.train import demo
from opendino.train.config import PretrainConfig
from opendino.train.demo import DemoConfig, Demonstration, Margin, Measured
from opendino.train.pretrain import Outcome


class Nothing(ImageDataset):
    """So many images that nobody looks at."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def read(self, index):
        raise NotImplementedError

    identify = read


def pair_of(labels):
    images = Nothing(len(labels))
    return LabelledPair(images, images, ("no", "yes"), labels, labels)


def margins(knn, logreg, entropy=0.95):
    figures = SimpleNamespace(
        knn=dict(zip(demo.ROWS, knn, strict=True)),
        logreg=dict(zip(demo.ROWS, logreg, strict=True)),
        health={"entropy_of_mean": entropy},
    )
    return Measured.margins(figures)


def test_margins_are_the_differences_that_are_promised():
    kept = margins((63.0, 46.0, 64.5), (39.0, 52.0, 62.0))
    assert [(one.found, one.wanted) for one in kept] == [(18.5, 12), (10.0, 9), (23.0, 10), (1.5, 0), (0.95, 0.9)]
    assert all(margin.met for margin in kept)
    worse = margins((63.0, 51.0, 62.5), (39.0, 52.0, 60.5))
    assert [margin.met for margin in worse] == [False, False, True, False, True]


@pytest.mark.parametrize(("entropy", "met"), [(0.901, True), (0.9, False), (0.1, False), (float("nan"), False)])
def test_a_collapse_is_a_promise_that_was_not_kept(entropy, met):
    last = margins((63.0, 46.0, 64.5), (39.0, 52.0, 62.0), entropy)[-1]
    assert last.what.startswith("entropy of the mean prediction")
    assert last.met is met
    assert (last.shown(), last.wish()) == (f"{entropy:.3f}", "more than 0.9")


def test_margins_in_words():
    assert [(one.shown(), one.wish()) for one in margins((63.0, 46.0, 64.5), (39.0, 52.0, 62.0))[:4]] == [
        ("+18.5", "at least +12"), ("+10.0", "at least +9"), ("+23.0", "at least +10"), ("+1.5", "more than 0"),
    ]  # fmt: skip


def test_time_and_notes_are_in_the_result(tmp_path):
    figures = dict.fromkeys(demo.ROWS, 50.0)
    note = demo.Note("random", "logreg", "it did not converge")
    measured = Measured(figures, figures, {"entropy_of_mean": 0.5}, {}, {}, pair_of(torch.tensor([0, 1])), {}, (note,))
    outcome = Outcome(tmp_path, 4, 32, 40.0, {}, seconds_before=100.0)
    result = Demonstration(PretrainConfig(), outcome, measured, 150.0).result()
    assert (result["seconds"], result["seconds_pretraining"]) == (150.0, 140.0)
    assert result["notes"] == [{"row": "random", "protocol": "logreg", "text": "it did not converge"}]
    assert result["margins"][-1] == {
        "what": "entropy of the mean prediction / ln K", "found": 0.5, "wanted": 0.9, "met": False,
    }  # fmt: skip
    json.dumps(result)


def test_notes_of_the_protocols_reach_the_reader():
    """A grid whose best strength lies at its edge says so."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=rng)
    y = (x[:, 0] > 0).long()
    pair = pair_of(y)
    _, notes = demo._logreg(demo._Space(x, x, x, x), pair)
    assert any("edge of the grid" in note for note in notes)
    assert demo._knn(demo._Space(x, x, x, x), pair)[1] == []


@pytest.mark.parametrize(
    ("points", "wanted", "met"), [(12.0, 12, True), (11.99, 12, False), (0.01, 0, True), (0, 0, False)]
)
def test_a_margin_of_nothing_means_more_than_nothing(points, wanted, met):
    assert Margin("any", points, wanted, strict=wanted == 0).met is met


def test_every_row_is_compared_by_cosine_with_equal_halves():
    features = Features(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 200.0]]), torch.tensor([0]), ())
    space = demo._space(features, features)
    assert space.train.tolist() == [[3.0, 4.0, 0.0, 200.0]]
    # Each half has length one before both are put side by side, so the larger patch mean does not outweigh CLS.
    expected = torch.tensor([[0.6, 0.8, 0.0, 1.0]]) / 2**0.5
    torch.testing.assert_close(space.test_unit, expected)


def test_an_impossible_number_of_images():
    with pytest.raises(ValueError, match="images = -1"):
        DemoConfig(images=-1)


def test_what_a_kill_left_of_the_mark_is_no_stranger(tmp_path):
    (tmp_path / ".demo.json.77.partial").write_text("ha")
    demo._claim(tmp_path)
    assert (tmp_path / demo.MARK).is_file()


def test_it_is_measured_with_the_threads_that_training_found(tmp_path, monkeypatch):
    before, seen = torch.get_num_threads(), []

    def train(*_):
        torch.set_num_threads(before + 1)
        return SimpleNamespace(output_dir=tmp_path)

    def look(_):
        seen.append(torch.get_num_threads())
        raise InterruptedError

    monkeypatch.setattr(demo, "prepare", lambda *_: SimpleNamespace(config=PretrainConfig(), choices={}))
    monkeypatch.setattr(demo, "pretrain", train)
    monkeypatch.setattr(demo, "measure", look)
    try:
        with pytest.raises(InterruptedError):
            demo.demo(tmp_path / "recipe.yaml", DemoConfig())
    finally:
        torch.set_num_threads(before)
    assert seen == [before + 1]
