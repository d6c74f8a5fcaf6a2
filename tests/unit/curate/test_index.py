# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opendino.curate.index import IndexConfig, read_index, read_part, run, usable
from opendino.errors import ConfigError, DataError
from opendino.stages.engines import Engine
from opendino.stages.folder import counts_of, parts_of


@pytest.fixture
def heap(tmp_path):
    """Seven files: good, a copy of it, small, long, cut off, no image, good."""
    folder, rng = tmp_path / "heap", np.random.default_rng(0)
    folder.mkdir()
    for name, size in (("a.png", (20, 30)), ("c.png", (6, 30)), ("d.png", (10, 90)), ("g.jpg", (20, 20))):
        Image.fromarray(rng.integers(0, 255, (size[0], size[1], 3), np.uint8)).save(folder / name)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "e.jpg").write_bytes((folder / "g.jpg").read_bytes()[:-300])
    (folder / "f.png").write_bytes(b"not an image")
    return folder


def test_what_cannot_be_used_is_set_aside_with_the_reason(tmp_path, heap):
    config = IndexConfig((str(heap),), rows=3, min_side=8, max_aspect=4.0)
    folder = run(tmp_path / "out", "index", config, Engine())
    table = pq.read_table(sorted(folder.glob("part-*.parquet")))
    said = dict(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))
    assert [key for key, reason in said.items() if not reason] == ["a.png", "b.png", "g.jpg"]
    assert said["c.png"] == "small: shorter side 6 < 8"
    assert said["d.png"] == "long: aspect 9.00 > 4"
    assert said["e.jpg"].startswith("broken: ")
    assert said["f.png"].startswith("unreadable: ")
    assert usable(folder).tolist() == [0, 6]
    assert counts_of(folder) == {
        "images": 7,
        "usable": 2,
        "set_aside": {"broken": 1, "identical": 1, "long": 1, "small": 1, "unreadable": 1},
    }
    assert np.load(folder / "identical_of.npy").tolist() == [0]


@pytest.mark.parametrize(("verify", "wanted"), [("decode", [1, 1, 1, 3, 3]), ("header", [1, 1, 3, 3, 3])])
def test_channels_tell_colour_from_grey_however_it_is_stored(tmp_path, verify, wanted):
    folder, rng = tmp_path / "heap", np.random.default_rng(0)
    folder.mkdir()
    grey = Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8))
    grey.save(folder / "a.png")
    Image.fromarray(rng.integers(0, 65535, (40, 40), np.uint16)).save(folder / "b.png")
    grey.convert("RGB").save(folder / "c.jpg", quality=50)
    spotted = grey.convert("RGB")
    spotted.paste((255, 0, 0), (0, 0, 3, 3))
    spotted.save(folder / "d.png")
    spotted.quantize(16).save(folder / "e.png")
    index = run(tmp_path / "out", "index", IndexConfig((str(folder),), verify=verify), Engine())
    assert pq.read_table(sorted(index.glob("part-*.parquet")))["channels"].to_pylist() == wanted


def test_rows_count_through_the_parts(tmp_path, heap):
    folder = run(tmp_path / "out", "index", IndexConfig((str(heap), str(heap)), rows=4, identical="keep"), Engine())
    assert len(parts_of(folder)) == 4
    assert pq.read_table(sorted(folder.glob("part-*.parquet")))["row"].to_pylist() == list(range(14))
    assert read_part(folder, 1)["row"].to_pylist() == [6, 7]
    found = read_index(folder, np.array([0, 6, 13]), ["key", "width"])
    assert found["key"].to_pylist() == ["a.png", "g.jpg", "g.jpg"]
    assert found["width"].to_pylist() == [30, 20, 20]


def test_nothing_to_use(tmp_path, heap):
    with pytest.raises(DataError, match=r"none of 7 images can be used"):
        run(tmp_path / "out", "index", IndexConfig((str(heap),), min_side=100), Engine())
    with pytest.raises(ConfigError, match="names nothing"):
        run(tmp_path / "out", "index", IndexConfig(), Engine())
    with pytest.raises(ConfigError, match="1 or more"):
        IndexConfig(rows=0)
