# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from opendino.curate import _embedders, embed
from opendino.curate._embedders import EmbedConfig, Embedder
from opendino.curate._features import OnDisk
from opendino.curate.index import IndexConfig
from opendino.curate.index import run as run_index
from opendino.errors import DataError
from opendino.stages.engines import Engine
from opendino.stages.folder import counts_of


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for shade in range(7):
        Image.fromarray(np.full((4, 4, 3), 30 * shade, np.uint8)).save(folder / f"{shade}.png")
    return run_index(tmp_path, "index", IndexConfig((str(folder),), rows=3, verify="header"), Engine())


@pytest.fixture
def shade(monkeypatch):
    """An embedder whose features are (1, shade): black gives (1, 0); an odd setting of size spoils some."""
    spoiled = {}

    def embed(images):
        values = torch.stack([torch.ones(len(images)), images], dim=1)
        for value, worth in spoiled.items():
            values[images == value] = worth
        return values

    embedder = Embedder(lambda image: torch.tensor(float(image.getpixel((0, 0))[0])), embed)
    monkeypatch.setattr("opendino.curate.embed.open_embedder", lambda config: embedder)
    return spoiled


def test_features_follow_the_rows_of_the_index(tmp_path, index, shade):
    folder = embed.run(tmp_path, "embed", index, EmbedConfig("shade", batch_size=2), Engine())
    matrix = OnDisk(folder)
    values = torch.stack([torch.ones(7), 30.0 * torch.arange(7)], dim=1)
    torch.testing.assert_close(matrix.block(0, 7), torch.nn.functional.normalize(values))
    assert [len(np.load(path)) for path in sorted(folder.glob("*.npy"))] == [3, 3, 1]
    half = embed.run(tmp_path, "half", index, EmbedConfig("shade", dtype="float16"), Engine())
    assert np.load(half / "part-00000.npy").dtype == np.float16


def test_images_and_features_that_are_no_use_are_set_aside(tmp_path, index, shade):
    shade.update({60.0: float("nan"), 90.0: 0.0})
    (tmp_path / "pictures" / "5.png").write_bytes(b"broken since")
    folder = embed.run(tmp_path, "embed", index, EmbedConfig("shade"), Engine())
    said = pq.read_table(sorted(folder.glob("part-*.parquet")))["reason"].to_pylist()
    assert said[2:4] == ["features: not finite", "features: zero vector"]
    assert said[5].startswith("unreadable: ")
    assert OnDisk(folder).rows.tolist() == [0, 1, 4, 6]
    assert counts_of(folder)["set_aside"] == 3


def test_nothing_embedded(tmp_path, index, shade):
    shade.update({30.0 * n: 0.0 for n in range(7)})
    with pytest.raises(DataError, match="no image could be embedded"):
        embed.run(tmp_path, "embed", index, EmbedConfig("shade"), Engine())


@pytest.mark.parametrize("rows", [3, 7])
def test_a_model_of_two_widths_is_told(tmp_path, monkeypatch, rows):
    """Within a part, and from one part to the next."""
    folder = tmp_path / "shades"
    folder.mkdir()
    for shade in range(7):
        Image.fromarray(np.full((4, 4, 3), 30 * shade, np.uint8)).save(folder / f"{shade}.png")
    index = run_index(tmp_path, "index", IndexConfig((str(folder),), rows=rows, verify="header"), Engine())
    embedder = Embedder(
        lambda image: torch.tensor(float(image.getpixel((0, 0))[0])),
        lambda images: torch.ones(len(images), 2 if images[0] < 80 else 5),
    )
    monkeypatch.setattr("opendino.curate.embed.open_embedder", lambda config: embedder)
    with pytest.raises(DataError, match="features of 2 numbers for some images and of 5 for others"):
        embed.run(tmp_path, "embed", index, EmbedConfig("shade", batch_size=3), Engine())


def test_bytes_do_not_depend_on_the_batch_that_decoding_runs_ahead(tmp_path, index):
    assert _embedders.open_embedder is embed.open_embedder
    a = embed.run(tmp_path, "a", index, EmbedConfig("thumbnail", threads=1), Engine())
    b = embed.run(tmp_path, "b", index, EmbedConfig("thumbnail", threads=3), Engine())
    assert (a / "part-00001.npy").read_bytes() == (b / "part-00001.npy").read_bytes()
