# SPDX-License-Identifier: Apache-2.0
import numpy as np

from opendino.search import find_duplicates, open_index
from opendino.search.page import duplicates_page, results_page, thumbnail


def test_every_result_has_a_picture(embedded, tmp_path):
    index = open_index(embedded)
    hits = index.hits(index.vectors.block(0, 1), 4)
    path = results_page(tmp_path / "r.html", index, [("<me>", index.dataset.image(0))], hits)
    html = path.read_text()
    assert html.count("<img") == 5
    assert "&lt;me&gt;" in html
    assert f"{hits[0][1].score:.3f}" in html


def test_groups_say_what_is_spare(embedded, tmp_path):
    index = open_index(embedded)
    html = duplicates_page(tmp_path / "d.html", index, find_duplicates(index, 0.999999), 0.999999).read_text()
    assert html.count("<img") == 4
    assert f"without the 2 spare ones {len(index) - 2} images are left" in html


def test_a_picture_that_has_gone_keeps_its_name(embedded, tmp_path):
    index = open_index(embedded)
    index.__dict__["dataset"] = type("Gone", (), {"image": lambda self, row: (tmp_path / "gone").read_bytes()})()
    hits = index.hits(index.vectors.block(0, 1), 1)
    html = results_page(tmp_path / "r.html", index, [("q", np.zeros((8, 8, 3), np.float32))], hits).read_text()
    assert hits[0][0].path in html


def test_thumbnails_keep_the_shape():
    assert thumbnail(np.zeros((100, 400, 5), np.float32), 200).size == (200, 50)
