# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from opendino.config import load
from opendino.curate.pipeline import CurateConfig, run
from opendino.data.datasets import open_dataset
from opendino.errors import ConfigError, OpendinoError


def test_a_folder_becomes_a_manifest(tmp_path, picture_folder):
    words = [f"out={tmp_path}", f"index.sources=[{picture_folder}]", "embed.model=thumbnail", "balance.size=12",
             "dedup.threshold=0.99", "cluster.kmeans.device=cpu", "search.device=cpu"]  # fmt: skip
    told = []
    folder = run(load(CurateConfig, None, words), told=lambda name, counts: told.append((name, counts)))
    assert [name for name, _ in told][:4] == ["index", "dedup", "embed", "cluster"]
    manifest = open_dataset(tmp_path / "manifest" / "manifest.parquet")
    assert len(manifest) == 12
    assert manifest.classes == ["class0", "class1", "class2", "class3"]
    assert folder == tmp_path
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix not in ("", ".html")}
    run(load(CurateConfig, None, words))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_single_stage(tmp_path, picture_folder):
    words = [f"out={tmp_path}", f"index.sources=[{picture_folder}]"]
    assert run(load(CurateConfig, None, words), until="dedup") == tmp_path / "dedup"
    assert not (tmp_path / "embed").exists()
    assert len(np.load(tmp_path / "dedup" / "kept.npy"))
    with pytest.raises(ConfigError, match=r"embed.model: names nothing"):
        run(load(CurateConfig, None, words))


def test_retrieval_alone_grows_no_tree(tmp_path, picture_folder):
    words = [f"out={tmp_path}", f"index.sources=[{picture_folder}]", f"queries=[{picture_folder / 'class1'}]",
             "embed.model=thumbnail", "retrieve.method=sample", "retrieve.k=1", "dedup.threshold=0.9999",
             "mix.parts=[retrieve]", "search.device=cpu"]  # fmt: skip
    run(load(CurateConfig, None, words))
    assert not (tmp_path / "cluster").exists()
    manifest = open_dataset(tmp_path / "manifest" / "manifest.parquet")
    assert {manifest.classes[label] for label in manifest.targets} == {"class1"}


def test_every_shipped_recipe_loads():
    from pathlib import Path

    recipes = sorted((Path(__file__).parents[3] / "configs" / "curate").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert load(CurateConfig, path, ["index.sources=[x]"]).dedup.k == 64


def test_a_setting_of_the_copy_detector_leaves_the_others():
    assert load(CurateConfig, None, ["copy.threads=1"]).copy.model == "thumbnail"


def test_thresholds_belong_to_the_detector():
    from opendino.curate.pipeline import with_thresholds

    ours = with_thresholds(CurateConfig())
    assert (ours.dedup.threshold, ours.decontaminate.threshold) == (0.75, 0.75)
    theirs = with_thresholds(load(CurateConfig, None, ["copy.model=torchscript:sscd.pt", "dedup.threshold=0.5"]))
    assert (theirs.dedup.threshold, theirs.decontaminate.threshold) == (0.5, 0.45)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["references=[{empty}]"], "empty: the folder is empty"),
        (["balance.size=500"], "there are 40 images, at most 1 times each; give 40 or less"),
        (["cluster.levels=[41,2]"], "41 clusters of 40 images; give fewer"),
    ],
)
def test_what_cannot_be_is_told_when_the_images_are_counted(tmp_path, picture_folder, words, message):
    (tmp_path / "empty").mkdir()
    words = [word.format(empty=tmp_path / "empty") for word in words]
    base = [f"out={tmp_path / 'out'}", f"index.sources=[{picture_folder}]", "embed.model=thumbnail"]
    with pytest.raises(OpendinoError, match=message):
        run(load(CurateConfig, None, [*base, "dedup.threshold=0.999", *words]))
    assert not (tmp_path / "out" / "copy_embed").exists()
    assert (tmp_path / "out" / "index" / "done.json").exists() == ("references=" not in words[0])


def test_too_large_a_sample_is_refused_before_the_features_of_the_model(tmp_path, picture_folder):
    words = [f"out={tmp_path}", f"index.sources=[{picture_folder}]", "embed.model=thumbnail", "balance.size=40",
             "dedup.threshold=0.3", "embed.dtype=float16"]  # fmt: skip
    with pytest.raises(ConfigError, match=r"there are \d+ images"):
        run(load(CurateConfig, None, words))
    kept = len(np.load(tmp_path / "dedup" / "kept.npy"))
    assert kept < 40
    assert not (tmp_path / "embed").exists()
    before = (tmp_path / "dedup" / "done.json").stat().st_mtime_ns
    run(load(CurateConfig, None, [*words, "balance.size=" + str(kept)]), until="balance")
    assert (tmp_path / "dedup" / "done.json").stat().st_mtime_ns == before  # finished stages stay


def test_a_single_stage_asks_nothing_of_later_ones(tmp_path, picture_folder):
    words = [f"out={tmp_path}", f"index.sources=[{picture_folder}]", "balance.size=500", "copy.model=nowhere"]
    assert run(load(CurateConfig, None, words), until="index") == tmp_path / "index"


def test_no_folder():
    with pytest.raises(ConfigError, match="out: names no folder"):
        run(CurateConfig())
