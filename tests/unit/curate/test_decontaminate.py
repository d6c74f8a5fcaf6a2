# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opendino.curate.decontaminate import DecontaminateConfig, leaks, run
from opendino.curate.index import IndexConfig
from opendino.curate.index import run as run_index
from opendino.errors import ConfigError
from opendino.neighbours.exact import SearchConfig
from opendino.stages.engines import Engine
from opendino.stages.folder import counts_of


def unit(degrees):
    radians = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_a_component_with_a_reference_goes_whole():
    leaked, by = leaks(np.array([0, 1, 0, 3, 0, 3, 6]), 4)
    assert leaked.tolist() == [True, False, True, True]
    assert by.tolist() == [0, -1, 0, 1]


def test_the_stage_drops_what_hangs_on_an_evaluation_image(tmp_path, embedded, selected):
    names = []
    for name, count in (("val", 1), ("test", 2)):
        folder = tmp_path / name
        folder.mkdir()
        names.append(str(folder))
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 9, 9)).save(folder / f"{number}.png")
    index = run_index(tmp_path, "references_index", IndexConfig(tuple(names), identical="keep"), Engine())
    # Image 10 is a leak, 20 hangs on it, 30 is free, 40 is a leak of the second set, 50 is not selected.
    pool = embedded(unit([0, 8, 90, 180, 1]), rows=[10, 20, 30, 40, 50], name="pool")
    references = embedded(unit([355, 270, 184]), name="references")
    chosen = selected([10, 20, 30, 40])
    config = DecontaminateConfig(threshold=float(np.cos(np.deg2rad(9))))
    found = run(tmp_path, chosen, pool, (index, references), config, SearchConfig(device="cpu"), Engine())
    assert np.load(found / "kept.npy").tolist() == [30]
    table = pq.read_table(found / "leaks.parquet").to_pydict()
    assert table["row"] == [10, 20, 40]
    assert table["direct"] == [True, False, True]
    assert table["reference"] == [0, 0, 2]
    assert counts_of(found)["dropped_for_set"] == {names[0]: 2, names[1]: 1}


def test_a_threshold_is_a_cosine():
    with pytest.raises(ConfigError, match=r"decontaminate.threshold = 45.0"):
        DecontaminateConfig(threshold=45.0)
