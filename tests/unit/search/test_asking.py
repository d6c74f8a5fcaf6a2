# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.errors import ConfigError, DataError
from opendino.search import open_index, search


def test_files_and_rows_are_asked_alike(embedded):
    index = open_index(embedded)
    path = str(index.dataset.read(index.table["row"][3].as_py()))
    row = index.table["row"][3].as_py()
    by_file, by_row = search(embedded, [path, f"row:{row}"], 4, device="cpu")
    assert by_file[0].row == row
    assert by_file[0].score == pytest.approx(1, abs=1e-6)
    assert [hit.row for hit in by_file[1:]] == [hit.row for hit in by_row[:3]]
    assert [hit.score for hit in by_file[1:]] == pytest.approx([hit.score for hit in by_row[:3]], abs=1e-5)
    assert len(by_row) == 4
    assert search(index, [], 4) == []


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("row:x", ConfigError, "row:N was wanted"),
        ("row:\u00b2", ConfigError, "row:N was wanted"),
        ("row:9999", DataError, "row 9999 is not in the index"),
        ("gone.jpg", ConfigError, "there is no such file; a query is an image file"),
        (".", ConfigError, "is a folder; a query is an image file"),
    ],
)
def test_what_is_no_query(embedded, query, error, message):
    with pytest.raises(error, match=message):
        search(embedded, [query], device="cpu")


def test_k_below_one(embedded):
    with pytest.raises(ConfigError, match="k = 0: give 1 or more"):
        search(embedded, ["row:0"], 0)
