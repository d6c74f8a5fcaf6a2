# SPDX-License-Identifier: Apache-2.0
"""Names that a disk allows: no UTF-8, a line's end, tags, as long as can be; tables, pages and commands take them."""

import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from opendino.checkpoint.weights import save_weights
from opendino.cli.main import main
from opendino.data.datasets import open_dataset
from opendino.models.vision_transformer import VisionTransformer

TAG = "<script>alert(1)<_script>"
NAMES = (b"caf\xe9/a\xff.png", b"caf\xe9/new\nline.png", f"b/{TAG}.png".encode(), b"b/" + b"x" * 240 + b".png",
         "b/\u202egnp.png".encode(), b"b/n.png")  # fmt: skip


@pytest.fixture
def odd(tmp_path):
    rng = np.random.default_rng(0)
    for name in NAMES:
        path = tmp_path / "images" / os.fsdecode(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(path)
        except (OSError, UnicodeEncodeError):
            pytest.skip("this disk takes names of UTF-8 alone")
    return tmp_path / "images"


def test_a_data_set_says_them_in_one_line_of_text_and_reads_them_as_they_are(odd):
    images = open_dataset(odd)
    told = [images.identify(row) for row in range(len(images))]
    assert all(name.isprintable() for name in told)
    assert f"{odd}/caf\\udce9/new\\nline.png" in told
    assert len(set(told)) == len(NAMES)
    assert images.classes == ["b", "caf\\udce9"]
    assert all(images.image(row).size == (24, 24) for row in range(len(images)))


def test_embedding_search_and_curation_take_them(odd, tmp_path, capsys):
    save_weights(VisionTransformer(img_size=16, patch_size=4, embed_dim=64, depth=1, num_heads=1), tmp_path / "w")
    words = ["--model", str(tmp_path / "w"), "--out", str(tmp_path / "f"), "size=16", "device=cpu", "threads=1"]
    assert main(["embed", str(odd), *words]) == 0
    assert pq.read_table(tmp_path / "f" / "part-00000.parquet").num_rows == len(NAMES)
    assert main(["search", "query", str(tmp_path / "f"), str(odd / "b" / "n.png"), f"page={tmp_path / 'p.html'}"]) == 0
    assert "<script>alert" not in (tmp_path / "p.html").read_text()
    assert "&lt;script&gt;alert" in (tmp_path / "p.html").read_text()
    small = "embed.model=thumbnail cluster.levels=[3,2] cluster.kmeans.device=cpu search.device=cpu balance.size=3"
    assert main(["curate", f"out={tmp_path / 'c'}", f"index.sources=[{odd}]", *small.split()]) == 0
    assert "2 images left out, their names are no UTF-8" in capsys.readouterr().err
    assert all("<script>alert" not in page.read_text() for page in (tmp_path / "c").rglob("*.html"))
