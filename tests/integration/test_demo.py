# SPDX-License-Identifier: Apache-2.0
"""The demonstration end to end on a handful of images: its figures, its page, and what a second call does."""

import json
import re

import numpy as np
import pytest
import torch

from opendino.cli import demo as verb
from opendino.errors import ConfigError
from opendino.train.demo import Margin
from opendino.train.metrics import JsonLines

TINY = """
images=60 train.batch_size=8 train.precision=fp32 train.threads=1 loader.workers=0 knn.every=3
dino.hidden_dim=32 dino.prototypes=32 student.depth=1 student.embed_dim=32 checkpoint.every=2 log.trackers=[]
"""
SMALL = TINY.split()


def demonstrate(folder, *words):
    assert verb.main([f"output_dir={folder}", *SMALL, *words]) == 0
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return folder, demonstrate(folder, "train.iterations=4")


def test_figures(done):
    _, result = done
    figures = [result[f"{protocol}_{row}"] for protocol in ("knn", "logreg") for row in ("pixels", "random", "trained")]
    assert all(0 <= figure <= 100 for figure in figures)
    assert len(set(figures)) > 1
    assert result["images_seen"] == 4 * 8
    assert result["seconds"] > result["seconds_pretraining"] > 0
    assert result["health"]["prototypes_share"] <= 1
    assert result["health"]["effective_rank"] > result["health"]["prototypes_share"]
    assert (result["whole"], result["margins_met"]) == (False, None), "nothing was promised of a run that is cut down"
    assert result["margins"][4]["found"] == pytest.approx(result["health"]["entropy_of_mean"], abs=0.0006)
    trained_over_pixels = result["knn_trained"] - result["knn_pixels"]
    assert result["margins"][3]["found"] == pytest.approx(trained_over_pixels, abs=0.002)


def test_page_needs_nothing_but_itself(done):
    folder, result = done
    page = (folder / "report.html").read_text()
    assert not re.search(r"https?:", page.replace("http://www.w3.org/2000/svg", ""))
    assert not re.search(r"<(script|link|iframe)\b|@import|url\((?!data:)", page)
    sources = re.findall(r'\bsrc="([^"]*)"', page) + re.findall(r'\bhref="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert f"{result['knn_trained']:.1f}" in page
    assert all(note["text"].split(";")[0] in page for note in result["notes"])
    for words in (
        "raw pixels",
        "untrained backbone",
        "Loss and its terms",
        "Test images while training",
        "Without labels",
        "PCA",
        "neighbours",
    ):
        assert words in page


def test_curve_ends_at_the_table(done):
    folder, result = done
    looks = [r for r in JsonLines(folder / "seed_0" / "metrics.jsonl").read() if "knn/top1_k20" in r]
    assert [look["step"] for look in looks] == [0, 3, 4]
    assert looks[0]["knn/top1_k20"] == pytest.approx(result["knn_random"], abs=0.001)
    assert looks[-1]["knn/top1_k20"] == pytest.approx(result["knn_trained"], abs=0.001)


def test_an_interrupted_one_continues_and_a_finished_one_starts_anew(done, caplog):
    folder, first = done
    (folder / "seed_0" / "result.json").unlink()  # as if killed before the end
    marker = folder / "seed_0" / "marker"
    marker.touch()
    second = demonstrate(folder, "train.iterations=4")
    assert marker.exists()
    # The reference rows do not depend on training, and training does not depend on when it was measured.
    assert second["seconds_pretraining"] >= first["seconds_pretraining"]
    assert second["seconds"] > first["seconds_pretraining"]
    timeless = [key for key in first if not key.startswith("seconds")]
    assert {key: first[key] for key in timeless} == {key: second[key] for key in timeless}
    third = demonstrate(folder, "train.iterations=2")
    assert not marker.exists()
    assert third["images_seen"] == 2 * 8
    assert [third[key] for key in ("knn_pixels", "knn_random", "logreg_random")] == [
        first[key] for key in ("knn_pixels", "knn_random", "logreg_random")
    ]


def test_seeds_have_a_run_each(done):
    folder, first = done
    other = demonstrate(folder, "seed=1", "train.iterations=2")
    assert other["seed"] == 1
    assert (folder / "seed_1" / "weights").is_dir()
    assert other["knn_pixels"] == first["knn_pixels"]
    assert other["health_random"] != first["health_random"]


def test_margins():
    assert Margin("at least twelve", 12.0, 12).met
    assert not Margin("at least twelve", 11.99, 12).met
    assert Margin("more", 0.05, 0).met
    assert not Margin("more", 0.0, 0, strict=True).met


def test_what_is_not_of_a_demonstration_is_not_touched(tmp_path):
    (tmp_path / "seed_0").mkdir()
    mine = [tmp_path / "report.html", tmp_path / "seed_0" / "result.json"]
    for path in mine:
        path.write_text("mine")
    with pytest.raises(ConfigError, match=r"such as report\.html; name another folder"):
        verb.main([f"output_dir={tmp_path}", *SMALL])
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "seed_0"]


def test_a_mistake_after_a_finished_one_loses_nothing(done):
    folder, _ = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"train\.iterations"):
        demonstrate(folder, "train.iteration=3")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_unknown_setting(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.iterations"):
        verb.main([f"output_dir={tmp_path / 'demo'}", *SMALL, "train.iteration=3"])
    assert not (tmp_path / "demo").exists()


def test_the_neighbours_of_the_table_are_nearest_by_cosine(done):
    from opendino.config import load
    from opendino.train.config import PretrainConfig
    from opendino.train.demo import measure

    folder, _ = done
    measured = measure(load(PretrainConfig, folder / "seed_1" / "config.yaml"))
    pixels = [
        np.stack([np.asarray(part.image(row), dtype=float).ravel() for row in range(60)])
        for part in (measured.pair.train, measured.pair.val)
    ]
    train, test = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in pixels)
    best = torch.from_numpy((test @ train.T).argmax(axis=1))
    assert (measured.nearest["pixels"][:, 0] == best).float().mean() > 0.99
