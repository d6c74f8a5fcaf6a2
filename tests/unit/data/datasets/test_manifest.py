# SPDX-License-Identifier: Apache-2.0
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opendino.data.datasets import open_dataset
from opendino.errors import DataError

ROWS = ["cat/0.png,1,tabby", "dog/1.png,0,poodle", '"cat/2.png",1,tabby']


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables_with_labels_and_their_names(image_folder, suffix):
    source = image_folder / f"table.{suffix}"
    if suffix == "parquet":
        table = pa.table({"path": ["cat/0.png", "dog/1.png", "cat/2.png"], "label": [1, 0, 1]})
        pq.write_table(table.append_column("label_name", pa.array(["tabby", "poodle", "tabby"])), source)
    else:
        text = "\n".join(["path,label,label_name", *ROWS])
        source.write_text(text if suffix == "csv" else text.replace(",", "\t"))
    dataset = open_dataset(source)
    assert [str(dataset.read(i).relative_to(image_folder)) for i in range(3)] == ["cat/0.png", "dog/1.png", "cat/2.png"]
    assert dataset.targets.tolist() == [1, 0, 1]
    assert dataset.classes == ["poodle", "tabby"]
    assert dataset.image(1).size == (49, 41)
    assert dataset.identify(1) == str(image_folder / "dog/1.png")


def test_columns_can_be_named(image_folder):
    source = image_folder / "table.csv"
    source.write_text("where,what,label\ncat/0.png,x,1\ndog/1.png,y,2\n")
    with pytest.raises(DataError, match=r"no column of paths; name one with path_column, its columns are where, what"):
        open_dataset(source)
    dataset = open_dataset(source, path_column="where", label_column="what")
    assert dataset.classes == ["x", "y"]
    assert open_dataset(source, path_column="where", label_column="none").targets is None
    with pytest.raises(DataError, match="no column 'who'"):
        open_dataset(source, path_column="where", label_column="who")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\n", "no rows"),
        ("path\nx.png\ny.png\n", "none of its first 2 files exists"),
        ("path,label\ncat/0.png,1\n,2\n", "1 of 2 paths are missing"),
        ("path,label\ncat/0.png,1\ncat/0.png,\n", "1 of 2 labels are missing"),
        ("path\n01\n02\n", "such as .*/01;"),
        ("", "cannot be read as a table"),
    ],
)
def test_tables_that_cannot_be_used(image_folder, text, message):
    (image_folder / "table.csv").write_text(text)
    with pytest.raises(DataError, match=f"table.csv.*({message})"):
        open_dataset(image_folder / "table.csv")


def test_text_labels_that_are_empty(image_folder):
    """In a CSV file a cell without text is a label that is missing, not a class without a name."""
    source = image_folder / "table.csv"
    source.write_text("path,label\ncat/0.png,cat\ndog/1.png,\n")
    with pytest.raises(DataError, match=r"table\.csv: 1 of 2 labels are missing; fill them or name label_column=none"):
        open_dataset(source)
    assert open_dataset(source, label_column="none").targets is None
    source.write_text("path,label\ncat/0.png,\ndog/1.png,\n")
    dataset = open_dataset(source)
    assert (dataset.targets, dataset.classes) == (None, [])


def test_a_missing_path_is_found_at_once(image_folder):
    pq.write_table(pa.table({"path": ["cat/0.png", None]}), image_folder / "table.parquet")
    with pytest.raises(DataError, match="1 of 2 paths are missing"):
        open_dataset(image_folder / "table.parquet")
