# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
from PIL import Image

from opendino.config import load
from opendino.curate import pipeline, report
from opendino.errors import DataError


def test_the_page_shows_what_was_done(tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8))
        small.resize((48, 48), Image.Resampling.BICUBIC).save(pool / f"{number:02d}.png")
    first = sorted(pool.iterdir())[0]
    Image.open(first).resize((40, 40)).save(pool / "zz-copy.png")
    (pool / "broken.png").write_bytes(b"nothing")
    words = [f"out={tmp_path / 'out'}", f"index.sources=[{pool}]", f"references=[{first.parent}]",
             "embed.model=thumbnail", "balance.size=4", "dedup.threshold=0.97", "decontaminate.threshold=0.9999999",
             "cluster.kmeans.device=cpu"]  # fmt: skip
    with pytest.raises(DataError, match="no image is left"):  # every image is an evaluation image
        pipeline.run(load(pipeline.CurateConfig, None, words))
    words = [word for word in words if not word.startswith("references")]
    folder = pipeline.run(load(pipeline.CurateConfig, None, words))
    assert folder == tmp_path / "out"
    text = (folder / "report.html").read_text()
    for word in (
        "Near copies",
        "went as near copies, the largest group has",
        "raise dedup.threshold (0.97 now)",
        "broken.png",
        "unreadable",
        "kept",
        "dropped",
        "cluster",
        "Balance",
    ):
        assert word in text
    assert not re.search(r'(src|href)="(?!data:)', text)  # nothing is fetched
    assert report.run(folder).read_text() == text


def test_without_an_index(tmp_path):
    with pytest.raises(DataError, match="run `opendino curate"):
        report.run(tmp_path)
