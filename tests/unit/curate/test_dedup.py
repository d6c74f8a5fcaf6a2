# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from opendino.curate.dedup import DedupConfig, centrality, choose, doubtful, run
from opendino.curate.index import IndexConfig
from opendino.curate.index import run as run_index
from opendino.errors import ConfigError
from opendino.neighbours.exact import SearchConfig
from opendino.neighbours.matrix import InMemory
from opendino.stages.engines import Engine
from opendino.stages.folder import counts_of


def unit(degrees):
    radians = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_one_of_each_component_is_kept():
    labels = np.array([0, 1, 0, 1, 4, 0])
    assert choose(labels, np.array([1.0, 5, 3, 5, 0, 2])).tolist() == [False, True, True, False, True, False]
    assert choose(labels, np.zeros(6)).tolist() == [True, True, False, False, True, False]
    assert choose(labels).tolist() == [True, True, False, False, True, False]
    # Of equals by the first score the second decides, and never against the first.
    assert choose(labels, np.zeros(6), np.array([1.0, 5, 3, 6, 0, 2])).tolist() == [
        False, False, True, True, True, False
    ]  # fmt: skip
    assert choose(labels, np.array([2.0, 0, 1, 0, 0, 1]), np.array([0.0, 0, 9, 1, 0, 9])).tolist() == [
        True, False, False, True, True, False
    ]  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 100])
def test_the_most_central_has_most_likeness_to_all_of_its_component(at_once):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 4))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    labels = np.array([0, 1, 0, 3, 0, 1, 6, 0, 0, 1, 0, 11])
    cosine = rows.astype(np.float64) @ rows.astype(np.float64).T
    np.fill_diagonal(cosine, 0)
    wanted = (cosine * (labels[:, None] == labels)).sum(axis=1)
    found = centrality(labels, InMemory(torch.from_numpy(rows)), at_once)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert (found[[3, 6, 11]] == 0).all()
    assert found.tolist() == centrality(labels, InMemory(torch.from_numpy(rows))).tolist()


def test_no_component_has_no_centre():
    assert centrality(np.arange(3), InMemory(torch.eye(3))).tolist() == [0, 0, 0]


def test_the_centre_is_of_all_copies_though_each_looks_at_few(tmp_path, embedded):
    """20 copies along an arc, of which each has its two nearest as edges: the middle is central, not an end."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(21):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:02d}.png")
    index = run_index(tmp_path, "index", IndexConfig((str(folder),)), Engine())
    # Wider steps towards the middle, so that by edges alone the ends, whose copies are nearer, would be central.
    steps = 0.5 + 0.4 * np.minimum(np.arange(20), 19 - np.arange(20)) / 10
    features = embedded(unit(np.concatenate([[0], np.cumsum(steps)])))
    config = DedupConfig(threshold=0.9995, k=2, keep="central")
    found, _ = run(tmp_path, index, features, config, SearchConfig(device="cpu"), Engine())
    assert counts_of(found)["largest_component"] == 21
    assert np.load(found / "kept.npy").tolist() == [10]


@pytest.mark.parametrize("keep", ["largest", "central"])
def test_of_equal_sizes_the_one_with_more_picture_is_kept(tmp_path, embedded, keep):
    """Colour before grey, stored as grey or not; then more bytes; then the name."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(4):
        small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8))
        pairs.append(small.resize((48, 48), Image.Resampling.BICUBIC))
    pairs[0].convert("L").save(folder / "0a_grey.png")
    pairs[0].save(folder / "0b.png")
    pairs[1].convert("L").convert("RGB").save(folder / "1a_grey_in_three_channels.jpg", quality=100, subsampling=0)
    pairs[1].save(folder / "1b.jpg", quality=60)  # fewer bytes, and yet of colours
    pairs[2].save(folder / "2a.jpg", quality=30)
    pairs[2].save(folder / "2b.jpg", quality=90)
    pairs[3].save(folder / "3a.bmp")
    pairs[3].transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "3b.bmp")
    index = run_index(tmp_path, "index", IndexConfig((str(folder),)), Engine())
    features = embedded(unit([0, 1, 90, 91, 180, 181, 270, 271]))
    config = DedupConfig(threshold=0.9, keep=keep)
    found, _ = run(tmp_path, index, features, config, SearchConfig(device="cpu"), Engine())
    assert np.load(found / "kept.npy").tolist() == [1, 3, 5, 6]


def test_many_copies_are_doubted(tmp_path, embedded, caplog):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    index = run_index(tmp_path, "index", IndexConfig((str(folder),)), Engine())
    features = embedded(unit([0, 1, 90]))
    caplog.set_level("WARNING")
    run(tmp_path, index, features, DedupConfig(threshold=0.9), SearchConfig(device="cpu"), Engine())
    assert "1 of 3 images (33.3 %) went as near copies" in caplog.text
    assert "raise dedup.threshold (0.9 now)" in caplog.text
    few = {"images": 100, "dropped": 2, "largest_component": 2}
    assert not doubtful(few, 0.9)
    assert "3 of 100 images (3.0 %)" in doubtful(few | {"dropped": 3}, 0.9)


@pytest.mark.parametrize(("keep", "kept"), [("largest", [2, 3, 4]), ("first", [0, 3, 4]), ("central", [1, 3, 4])])
def test_the_stage_keeps_by_the_rule(tmp_path, embedded, keep, kept):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, side in enumerate((8, 9, 10, 11, 12)):
        Image.new("RGB", (side, side), (number, 0, 0)).save(folder / f"{number}.png")
    index = run_index(tmp_path, "index", IndexConfig((str(folder),)), Engine())
    features = embedded(unit([0, 9, 18, 100, 200]))
    config = DedupConfig(threshold=float(np.cos(np.deg2rad(10))), keep=keep)
    found, _ = run(tmp_path, index, features, config, SearchConfig(device="cpu"), Engine())
    assert np.load(found / "kept.npy").tolist() == kept
    table = pq.read_table(found / "copies.parquet").to_pydict()
    assert table["row"] == [0, 1, 2]
    assert table["component"] == [0, 0, 0]
    assert counts_of(found) == {
        "images": 5, "kept": 3, "dropped": 2, "dropped_share": 0.4, "components_with_copies": 1, "largest_component": 3,
        "rows_with_all_k": 0
    }  # fmt: skip


def test_settings_out_of_range():
    with pytest.raises(ConfigError, match="is a cosine"):
        DedupConfig(threshold=1.5)
    with pytest.raises(ConfigError, match="1 or more neighbours"):
        DedupConfig(k=0)
