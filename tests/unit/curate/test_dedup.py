# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opendino.curate.dedup import DedupConfig, centrality, choose, run
from opendino.curate.index import IndexConfig
from opendino.curate.index import run as run_index
from opendino.errors import ConfigError
from opendino.neighbours.exact import SearchConfig
from opendino.stages.engines import Engine
from opendino.stages.folder import counts_of


def unit(degrees):
    radians = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_one_of_each_component_is_kept():
    labels = np.array([0, 1, 0, 1, 4, 0])
    assert choose(labels, np.array([1.0, 5, 3, 5, 0, 2])).tolist() == [False, True, True, False, True, False]
    assert choose(labels, np.zeros(6)).tolist() == [True, True, False, False, True, False]


def test_the_most_central_has_most_likeness():
    a, b, cosine = np.array([0, 1, 1]), np.array([1, 2, 2]), np.array([0.7, 0.8, 0.8], dtype=np.float32)
    # The edge 1-2 was found by both its ends, in two parts of two nodes each.
    parts = [(a[:2], b[:2], cosine[:2]), (a[2:], b[2:], cosine[2:])]
    assert centrality(4, parts, rows=2).tolist() == pytest.approx([0.7, 1.5, 0.8, 0])
    assert centrality(4, [(a[:2], b[:2], cosine[:2])]).tolist() == pytest.approx([0.7, 1.5, 0.8, 0])


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
        "images": 5, "kept": 3, "dropped": 2, "components_with_copies": 1, "largest_component": 3, "rows_with_all_k": 0
    }  # fmt: skip


def test_settings_out_of_range():
    with pytest.raises(ConfigError, match="is a cosine"):
        DedupConfig(threshold=1.5)
    with pytest.raises(ConfigError, match="1 or more neighbours"):
        DedupConfig(k=0)
