# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opendino.curate.index import IndexConfig
from opendino.curate.index import run as run_index
from opendino.curate.retrieve import RetrieveConfig, by_cluster, by_sample, run
from opendino.errors import ConfigError
from opendino.neighbours.exact import SearchConfig
from opendino.stages.engines import Engine
from opendino.stages.folder import counts_of


def unit(degrees):
    radians = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("queries", "k", "published"), [(14_197_086, 4, 56_788_344), (1_281_167, 32, 40_997_344), (1_580_470, 4, 6_321_880)]
)
def test_the_published_rows_are_multiples(queries, k, published):
    """LVD-142M, table 15: repeats between queries count, which is what "count" does."""
    few = queries // 100_000
    neighbours = np.tile(np.arange(40), (few, 1))  # all queries have the same neighbours
    assert len(by_sample(neighbours, k, "count")) == few * k
    assert queries * k == published


def test_repeats_are_replaced_where_asked_for():
    neighbours = np.array([[3, 1, 2, 9], [3, 1, 4, 5], [1, 3, 2, 4]])
    assert by_sample(neighbours, 2, "replace").tolist() == [1, 2, 3, 4, 5]


def test_clusters_with_more_than_three_queries_are_taken():
    pool = np.array([0] * 5 + [1] * 9 + [2] * 4)
    queries = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    taken = by_cluster(pool, queries, RetrieveConfig(each=6), np.random.default_rng(0))
    assert len(taken) == 6
    assert (pool[taken] == 1).all()
    assert len(by_cluster(pool, queries[:3], RetrieveConfig(), np.random.default_rng(0))) == 0


@pytest.fixture
def asked(tmp_path, embedded):
    folder = tmp_path / "queries"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 9, 9)).save(folder / f"{number}.png")
    index = run_index(tmp_path, "queries_index", IndexConfig((str(folder),)), Engine())
    return index, embedded(unit([1, 2, 3, 4, 181]), name="asked")


def test_the_stage_by_samples_and_by_clusters(tmp_path, embedded, selected, asked):
    pool = embedded(unit([0, 10, 20, 170, 180, 190, 5]), name="pool")
    chosen = selected(range(7))
    search = SearchConfig(device="cpu")
    found = run(tmp_path / "a", chosen, pool, asked, RetrieveConfig("sample", k=2), search, Engine())
    assert np.load(found / "kept.npy").tolist() == [0, 4, 5, 6]
    assert np.load(found / "times.npy").tolist() == [4, 1, 1, 4]
    (said,) = counts_of(found)["sets"].values()
    assert said == {"queries": 5, "method": "sample", "retrieved": 10, "kept": 4}
    config = RetrieveConfig("cluster", clusters=2, each=3)
    found = run(tmp_path / "b", chosen, pool, asked, config, search, Engine())
    kept = np.load(found / "kept.npy")
    assert len(kept) == 3
    assert set(kept.tolist()) <= {0, 1, 2, 6}
    config = RetrieveConfig("cluster", clusters=2, cap=1)
    found = run(tmp_path / "c", chosen, pool, asked, config, search, Engine())
    assert len(pq.read_table(found / "retrieved.parquet")) == 1


def test_settings_out_of_range():
    with pytest.raises(ConfigError, match="give 1 or more"):
        RetrieveConfig(k=0)
