# SPDX-License-Identifier: Apache-2.0
"""What people do with features on the day they have them, on real photographs: embed, search, look, export."""

import io

import jaxtyping
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from opendino.checkpoint.weights import save_weights
from opendino.cli.main import main
from opendino.models.vision_transformer import VisionTransformer

PHOTOS = 12


@pytest.fixture(scope="module")
def photos(real_data, tmp_path_factory):
    """Photographs as files of their own, the first one twice, and a file that is none."""
    table = real_data / "photos.parquet"
    if not table.exists():
        pytest.skip(f"{table} is missing; set OPENDINO_TEST_DATA")
    folder = tmp_path_factory.mktemp("photos")
    for number, cell in enumerate(pq.read_table(table)["image"].to_pylist()[:PHOTOS]):
        (folder / f"{number:02d}.jpg").write_bytes(cell["bytes"] if isinstance(cell, dict) else cell)
    (folder / "again.jpg").write_bytes((folder / "00.jpg").read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "w"
    save_weights(VisionTransformer(img_size=112, patch_size=14, embed_dim=64, depth=2, num_heads=1), folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_from_a_folder_to_what_is_shipped(photos, model, tmp_path, capsys):
    features, page = tmp_path / "features", tmp_path / "page.html"
    assert main(["embed", str(photos), "--model", model, "--out", str(features), "size=112", "device=cpu"]) == 0
    told = capsys.readouterr().out
    assert f"{PHOTOS + 1} images, 1 skipped" in told
    table = pq.read_table(features / "part-00000.parquet")
    for path, width, height in zip(
        table["path"].to_pylist(), table["width"].to_pylist(), table["height"].to_pylist(), strict=True
    ):
        with Image.open(photos / path.rpartition("/")[2]) as photo:
            assert photo.size == (width, height)
    assert np.isfinite(np.array(table["cls"].to_pylist())).all()
    assert main(["search", "query", str(features), str(photos / "00.jpg"), "k=2", f"page={page}", "device=cpu"]) == 0
    told = capsys.readouterr().out
    assert {"00.jpg", "again.jpg"} <= {word.rpartition("/")[2] for word in told.split()}
    assert page.read_text().count("data:image") >= 3
    assert main(["search", "duplicates", str(features), "threshold=0.999999"]) == 0
    assert "again.jpg" in capsys.readouterr().out
    words = ["view", "pca", model, str(photos / "00.jpg"), str(photos / "01.jpg"), f"out={tmp_path / 'pca.png'}"]
    assert main([*words, "size=112", "side=112", "device=cpu"]) == 0
    with Image.open(io.BytesIO((tmp_path / "pca.png").read_bytes())) as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    jaxtyping.config.update("jaxtyping_disable", True)  # tracers do not know sizes
    try:
        made = tmp_path / "x.pt"
        assert main(["export", model, "--to", "trace", str(made), f"images={photos / '01.jpg'}"]) == 0
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert "tolerance 0.0001" in capsys.readouterr().out
    assert made.exists()
