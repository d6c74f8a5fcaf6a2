# SPDX-License-Identifier: Apache-2.0
"""Parts of the demonstration's page; the whole page is looked at in tests/integration/test_demo.py."""

from types import SimpleNamespace

import torch

from opendino.train import demo_report
from opendino.train.demo import Note


def test_rows_of_the_table_stand_in_the_order_of_what_was_learned():
    figures = SimpleNamespace(
        knn={"trained": 3.0, "pixels": 1.0, "random": 2.0}, logreg={"trained": 30.0, "pixels": 10.0, "random": 20.0}
    )
    assert demo_report.table_rows(figures) == [
        ("raw pixels", 1.0, 10.0),
        ("untrained backbone", 2.0, 20.0),
        ("trained teacher", 3.0, 30.0),
    ]


def test_notes_name_their_row_and_protocol():
    figures = SimpleNamespace(notes=(Note("pixels", "knn", "left out k = 20"), Note("trained", "logreg", "wider")))
    assert demo_report.note_lines(figures) == [
        "note: raw pixels, k-NN: left out k = 20",
        "note: trained teacher, logistic regression: wider",
    ]


def test_one_picture_of_each_class_is_the_first_of_its_label():
    labels = torch.tensor([2, 2, 0, 1, 0, 1])
    pair = SimpleNamespace(val_labels=labels, classes=["boot", "coat", "bag"])
    figures = SimpleNamespace(pair=pair)
    assert demo_report._one_of_each(figures) == [2, 3, 0]
    assert demo_report._names(figures) == ["boot", "coat", "bag"]


def test_points_of_a_curve_are_counted_in_images_and_leave_out_what_is_not_finite():
    records = [{"step": 1, "loss": 4.0}, {"step": 2, "knn": 9.0}, {"step": 3, "loss": None}, {"step": 4, "loss": 2.0}]
    assert demo_report._points(records, "loss", 64) == ([64, 256], [4.0, 2.0])
