# SPDX-License-Identifier: Apache-2.0
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from opendino.curate.index import IndexConfig
from opendino.curate.index import run as run_index
from opendino.curate.mix import MANIFEST, MixConfig, largest_remainder, mixture, run
from opendino.data.datasets import open_dataset
from opendino.errors import ConfigError, DataError
from opendino.stages.engines import Engine


def part(rows, times=None):
    return np.array(rows), np.ones(len(rows), dtype=np.int64) if times is None else np.array(times)


def test_parts_as_they_are():
    rows, times, why = mixture([part([1, 3, 5]), part([3, 7], [4, 1])], ("a", "b"), MixConfig())
    assert rows.tolist() == [1, 3, 5, 7]
    assert times.tolist() == [1, 4, 1, 1]
    assert why == ["a", "a+b", "a", "b"]


def test_weights_are_shares_of_the_epoch():
    config = MixConfig(("dedup", "balance"), (3.0, 1.0), size=40)
    rows, times, why = mixture([part(range(10)), part(range(50, 100))], ("a", "b"), config)
    of_a = np.array([name == "a" for name in why])
    assert times[of_a].tolist() == [3] * 10
    assert times[~of_a].sum() == 10
    assert len(set(rows.tolist())) == 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 9), min_size=1, max_size=6), st.integers(0, 500))
def test_remainders_add_up(weights, total):
    found = largest_remainder(np.array(weights), total)
    assert found.sum() == total
    assert (np.abs(found - np.array(weights) / sum(weights) * total) < 1 + 1e-9).all()


@pytest.fixture
def index(tmp_path):
    for name, shades in (("a", range(4)), ("b", range(4, 6))):
        (tmp_path / name).mkdir()
        for shade in shades:
            Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / name / f"{shade}.png")
    return run_index(tmp_path / "out", "index", IndexConfig((str(tmp_path / "a"), str(tmp_path / "b"))), Engine())


def reds(path):
    images = open_dataset(path)
    return [images.image(row).getpixel((0, 0))[0] for row in range(len(images))]


def test_the_manifest_opens_as_a_data_set(tmp_path, index, selected):
    tree = {"times": [2, 1], "paths": [[0, 1], [3, 1]]}
    selections = {"dedup": selected([0, 1, 2], name="dedup"), "balance": selected([1, 3], name="balance", **tree)}
    folder = run(tmp_path / "out", index, selections, MixConfig(tar=1))
    assert reds(folder / MANIFEST) == [1, 1, 3]
    table = pq.read_table(folder / MANIFEST)
    assert table["cluster_path"].to_pylist() == ["1/0", "1/3"]
    assert table["reason"].to_pylist() == ["balance", "balance"]
    with tarfile.open(folder / "images-00001.tar") as archive:
        assert archive.getnames() == ["000000001.png"]
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = run(tmp_path / "again", index, selections, MixConfig(tar=1))
    assert {path.name: path.read_bytes() for path in again.iterdir()} == first


def test_a_source_as_it_is(tmp_path, index, selected):
    config = MixConfig(("balance", f"set:{tmp_path / 'b'}"))
    folder = run(tmp_path / "out", index, {"balance": selected([1], times=[1], paths=[[0]])}, config)
    assert reds(folder / MANIFEST) == [1, 4, 5]


def test_what_is_not_there(tmp_path, index, selected):
    with pytest.raises(ConfigError, match="retrieve is no selection of this run; there are dedup"):
        run(tmp_path / "out", index, {"dedup": selected([1])}, MixConfig(("retrieve",)))
    with pytest.raises(ConfigError, match="set:x is no source of this index"):
        run(tmp_path / "out", index, {"dedup": selected([1])}, MixConfig(("set:x",)))
    with pytest.raises(DataError, match="no image is left"):
        run(tmp_path / "out", index, {"dedup": selected([], name="none")}, MixConfig())
    with pytest.raises(ConfigError, match="one of 0 or more for each"):
        MixConfig(("dedup",), (0.5, 0.5))
    with pytest.raises(ConfigError, match="dedupp is no selection; there are dedup"):
        MixConfig(("dedupp",))
