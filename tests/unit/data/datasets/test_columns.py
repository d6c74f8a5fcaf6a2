# SPDX-License-Identifier: Apache-2.0
import json

import pyarrow as pa
import pytest

from opendino.data.datasets._columns import find, huggingface_names, read_labels
from opendino.errors import DataError


def column(values, kind=None):
    half = len(values) // 2
    return pa.chunked_array([pa.array(values[:half], kind), pa.array(values[half:], kind)])


def test_a_column_is_found_by_its_name():
    assert find(["id", "Image_Path", "y"], "", ["path", "image_path"]) == "Image_Path"
    assert find(["path", "file"], "", ["file", "path"]) == "file"  # the order of the candidates decides
    assert find(["id"], "", ["path"]) == ""
    assert find(["id", "x"], "x", ["path"]) == "x"
    with pytest.raises(DataError, match=r"no column 'z'; its columns are id, x"):
        find(["id", "x"], "z", [])


def test_text_is_numbered_alphabetically():
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        labels, classes = read_labels(column(["dog", "cat", "dog", "eel"], kind))
        assert labels.tolist() == [1, 0, 1, 2]
        assert classes == ["cat", "dog", "eel"]


def test_whole_numbers_are_kept():
    labels, classes = read_labels(column([3, 0, 3], pa.int16()))
    assert labels.tolist() == [3, 0, 3]
    assert classes == ["0", "1", "2", "3"]


def test_names_of_numbers():
    labels = column([2, 0, 2], pa.int64())
    assert read_labels(labels, column(["dog", "cat", "dog"]))[1] == ["cat", "1", "dog"]
    assert read_labels(labels, known=["a", "b", "c"])[1] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([1, None], pa.int8(), "1 of 2 labels are missing"),
        (["cat", None, "dog"], pa.string(), "1 of 3 labels are missing; fill them or name label_column=none"),
        (["cat", "", " ", "dog"], pa.large_string(), "2 of 4 labels are missing"),
        ([0, -1], pa.int8(), "label -1 is negative"),
        ([0.5, 1.0], pa.float32(), "labels of type float"),
    ],
)
def test_labels_that_do_not_count(values, kind, message):
    with pytest.raises(DataError, match=message):
        read_labels(column(values, kind))


@pytest.mark.parametrize(
    ("values", "kind"), [(["", " "], pa.string()), ([None, ""], pa.string()), ([None, None], pa.int8())]
)
def test_a_column_without_a_label_holds_none(values, kind):
    assert read_labels(column(values, kind)) == (None, [])


def test_names_that_hugging_face_wrote():
    info = {
        "info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}}
    }
    schema = pa.schema({"label": pa.int64()}).with_metadata({"huggingface": json.dumps(info)})
    assert huggingface_names(schema, "label") == ["cat", "dog"]
    assert huggingface_names(schema, "image") == []
    assert huggingface_names(schema.with_metadata({"huggingface": "{"}), "label") == []
    assert huggingface_names(pa.schema({}), "label") == []


def test_a_number_that_is_no_class_does_not_make_names_for_all_below_it():
    with pytest.raises(DataError, match="is no number of a class"):
        read_labels(pa.chunked_array([[0, 2**40]]))
    with pytest.raises(DataError, match="label 2 has no name among the 2"):
        read_labels(pa.chunked_array([[0, 2]]), None, ["a", "b"])
