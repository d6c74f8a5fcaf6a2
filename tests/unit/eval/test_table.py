# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.errors import ConfigError
from opendino.eval._results import Results
from opendino.eval._table import gather, tables


def result(model, figures, protocol="knn", val="cifar"):
    return Results(protocol, figures, {"val": val}, {"source": model, "sha256": model})


def test_models_stand_in_rows_under_one_head_for_each_protocol_and_data():
    text = tables(
        [
            result("ours", {"top1": 61.5, "top5": 90.0}),
            result("theirs", {"top1": 60.25}),
            result("ours", {"top1": 70.0}, "linear"),
            result("ours", {"top1": 50.0}, val="other"),
        ]
    )
    assert text == (
        "**knn**, cifar\n\n"
        "| model  |  top1 |  top5 |\n| :----- | ----: | ----: |\n"
        "| ours   | 61.50 | 90.00 |\n| theirs | 60.25 |       |\n\n"
        "**knn**, other\n\n| model |  top1 |\n| :---- | ----: |\n| ours  | 50.00 |\n\n"
        "**linear**, cifar\n\n| model |  top1 |\n| :---- | ----: |\n| ours  | 70.00 |"
    )


def test_a_table_wider_than_a_line_stands_on_its_side():
    figures = {"effective_rank": 61.5, "mean_cosine": 0.25, "uniformity": -3.0}
    members = [result(name, figures, "health") for name in ("runs/one", "runs/two", "runs/three")]
    flat = tables(members)
    assert tables(members, 200) == flat
    assert tables(members, 58) == flat
    assert len(flat.splitlines()[2]) == 58
    assert tables(members, 57) == (
        "**health**, cifar\n\n"
        "| model          | runs/one | runs/two | runs/three |\n"
        "| :------------- | -------: | -------: | ---------: |\n"
        "| effective_rank |    61.50 |    61.50 |      61.50 |\n"
        "| mean_cosine    |     0.25 |     0.25 |       0.25 |\n"
        "| uniformity     |    -3.00 |    -3.00 |      -3.00 |"
    )
    narrow = tables(members, 40).split("\n\n")
    assert [part.splitlines()[0] for part in narrow[1:]] == [
        "| model          | runs/one | runs/two |",
        "| model          | runs/three |",
    ]
    assert tables(members, 3).count("| model ") == 3, "one at a time, however narrow"


def test_files_folders_and_runs_are_gathered(tmp_path):
    file = result("a", {"top1": 1.0}).write(tmp_path / "run" / "eval")
    result("b", {"top1": 2.0}).write(tmp_path / "out")
    found = gather([str(tmp_path / "run"), str(tmp_path / "out"), str(file)])
    assert [one.model["source"] for one in found] == ["a", "b", "a"]
    assert found[0].figures == {"top1": 1.0}
    with pytest.raises(ConfigError, match="nowhere: there is no such file or folder"):
        gather([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no results"):
        gather([str(tmp_path / "empty")])
    (tmp_path / "x.json").write_text('{"loss": 1}')
    with pytest.raises(ConfigError, match="no results that this version can read"):
        gather([str(tmp_path / "x.json")])
