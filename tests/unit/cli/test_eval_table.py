# SPDX-License-Identifier: Apache-2.0
import pytest

from opendino.cli import eval as verb
from opendino.errors import ConfigError
from opendino.eval._results import Results


def test_tables_are_printed_and_appended(tmp_path, capsys, monkeypatch):
    Results("knn", {"top1": 61.5}, {"val": "cifar"}, {"source": "ours"}).write(tmp_path / "out")
    page = tmp_path / "page.md"
    page.write_text("# Results\n\n")
    assert verb.main(["table", str(tmp_path / "out"), f"out={page}"]) == 0
    printed = capsys.readouterr().out
    assert "| ours  | 61.50 |" in printed
    assert page.read_text() == f"# Results\n\n{printed}\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "15")
    assert verb.main(["table", str(tmp_path / "out"), f"out={tmp_path / 'narrow.md'}"]) == 0
    assert "| model |  ours |\n| :---- | ----: |\n| top1  | 61.50 |\n" in capsys.readouterr().out
    assert (tmp_path / "narrow.md").read_text() == f"{printed}\n", "a document knows no terminal"
    deep = tmp_path / "not" / "yet" / "page.md"
    assert verb.main(["table", str(tmp_path / "out"), f"out={deep}"]) == 0
    assert deep.read_text() == f"{printed}\n"
    with pytest.raises(ConfigError, match="check the path: a part of it is a file"):
        verb.main(["table", str(tmp_path / "out"), f"out={page}/page.md"])
    with pytest.raises(ConfigError, match=r"k=3: no such setting"):
        verb.main(["table", str(tmp_path / "out"), "k=3"])
    with pytest.raises(ConfigError, match="name results files"):
        verb.main(["table"])
