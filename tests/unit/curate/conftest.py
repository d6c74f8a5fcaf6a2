# SPDX-License-Identifier: Apache-2.0
"""Small data for the stages of curation: features on the disk, and folders of pictures."""

import numpy as np
import pyarrow as pa
import pytest

from opendino.stages.folder import Stage, marker, write_array, write_table


@pytest.fixture
def embedded(tmp_path):
    """A function that writes features as a finished embedding stage, in parts of a size."""

    def write(features, rows=None, part=5, name="embed"):
        features = np.asarray(features)
        rows = np.arange(len(features)) if rows is None else np.asarray(rows)
        stage = Stage(tmp_path / name, name, {}, {"made": repr(features.shape)})
        stage.begin()
        for number, start in enumerate(range(0, len(features), part)):
            mine = slice(start, start + part)
            write_array(stage.folder / f"part-{number:05d}.npy", features[mine])
            table = pa.table({"row": rows[mine], "reason": pa.array([""] * len(rows[mine]), pa.string())})
            write_table(marker(stage.folder, number), table)
        stage.finish({})
        return stage.folder

    return write


@pytest.fixture
def selected(tmp_path):
    """A function that writes rows as a finished selection."""

    def write(rows, name="chosen", **arrays):
        stage = Stage(tmp_path / name, name, {}, {})
        stage.begin()
        write_array(stage.folder / "kept.npy", np.asarray(rows, dtype=np.int64))
        for key, array in arrays.items():
            write_array(stage.folder / f"{key}.npy", np.asarray(array))
        stage.finish({})
        return stage.folder

    return write
