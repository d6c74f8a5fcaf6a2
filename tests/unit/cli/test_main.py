# SPDX-License-Identifier: Apache-2.0
import errno
import os
import subprocess
import sys
from importlib import import_module

import pytest

from opendino import __version__
from opendino.cli import VERBS, main
from opendino.errors import DataError

HEAVY = ("torch", "numpy", "PIL", "pydantic", "pyarrow", "transformers", "sklearn", "matplotlib")


@pytest.mark.parametrize(
    "words", [["--help"], [], ["pretrain", "--help"], ["--version"], ["nonsense"], ["config", "ls"]]
)
def test_answers_come_without_torch(words):
    code = (
        "import sys\nfrom opendino.cli.main import main\n"
        f"main({words!r})\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_verb(capsys):
    assert main.main(["--help"]) == 0
    page = capsys.readouterr().out
    for verb, module in VERBS.items():
        assert f"  {verb} " in page
        assert import_module(module).SUMMARY in page


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(verb, capsys):
    assert main.main([verb, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"usage: opendino {verb}" in page
    assert max(map(len, page.splitlines())) <= 120


def test_every_file_is_a_verb_or_machinery():
    from pathlib import Path

    import opendino.cli

    files = {path.stem for path in Path(opendino.cli.__file__).parent.glob("*.py")}
    assert {name for name in files if not name.startswith("_")} - {"main"} == set(VERBS)


def test_version(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"opendino {__version__}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [("pretrian", "did you mean pretrain?"), ("--verion", "did you mean --version?"), ("xyz", "the verbs are ")],
)
def test_unknown_verb(word, hint, capsys):
    assert main.main([word]) == 2
    assert hint in capsys.readouterr().err


BELOW = {
    "pretrain": "data=nowhere output_dir={}/run",
    "adapt": "nowhere data=nowhere output_dir={}/run",
    "distill": "teacher=nowhere data=nowhere output_dir={}/run",
    "demo": "output_dir={}/demo",
    "embed": "nowhere --model nowhere --out {}/f",
    "curate": "index.sources=[nowhere] embed.model=nowhere out={}/c",
    "eval": "health nowhere data=nowhere out={}/eval",
    "view": "pca nowhere nowhere out={}/x.png",
    "export": "nowhere --to onnx {}/x.onnx",
    "convert": "nowhere --to hf {}/hf",
    "eval table": "nowhere out={}/x.md",
    "search": "query nowhere row:0 page={}/x.html",
}


@pytest.mark.parametrize("verb", BELOW)
def test_a_place_that_cannot_take_the_results_is_refused_first(verb, tmp_path, capsys):
    place = tmp_path / "deep" / "file"
    place.parent.mkdir()
    place.write_text("mine")
    assert main.main([*verb.split(), *BELOW[verb].format(place).split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert str(place) in line
    assert line.endswith(" cannot be written (Not a directory); check the path: a part of it is a file")
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "file"]


class Verb:
    SUMMARY, USAGE = "", ""

    def __init__(self, error):
        self.error = error

    def main(self, argv):
        raise self.error


def run(monkeypatch, error, *words):
    monkeypatch.setattr(main, "import_module", lambda name: Verb(error))
    return main.main(["doctor", *words])


def test_an_error_of_the_user_is_a_sentence(monkeypatch, capsys):
    assert run(monkeypatch, DataError("x/y: empty; fill it\na second mistake")) == 2
    assert capsys.readouterr().err == "error: x/y: empty; fill it\nerror: a second mistake\n"
    with pytest.raises(DataError):
        run(monkeypatch, DataError("x"), "--debug")


def test_ctrl_c(monkeypatch, capsys):
    assert run(monkeypatch, KeyboardInterrupt()) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk(monkeypatch, capsys):
    assert run(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "runs/x/metrics.jsonl")) == 2
    assert capsys.readouterr().err.startswith("error: runs/x/metrics.jsonl: could not be written (No space left")


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "name another folder"),
        (errno.EACCES, "name another folder"),
        (errno.EPERM, "name another folder"),
        (errno.ENAMETOOLONG, "give a shorter name"),
        (errno.ENOENT, "check the path"),
        (errno.EIO, "see to this file and its disk"),
    ],
)
def test_what_the_system_says_of_a_file_is_a_sentence(monkeypatch, capsys, number, wanted):
    assert run(monkeypatch, OSError(number, os.strerror(number), "runs/x/y")) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: runs/x/y: could not be ")
    assert f"({os.strerror(number)}); {wanted}" in said
    assert said.count("\n") == 1
    with pytest.raises(OSError, match=r"runs/x/y"):
        run(monkeypatch, OSError(number, os.strerror(number), "runs/x/y"), "--debug")


def test_a_name_that_is_too_long(capsys, tmp_path):
    assert main.main(["pretrain", f"data={tmp_path}", f"output_dir={tmp_path / ('x' * 300)}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "give a shorter name" in said


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    with pytest.raises(OSError, match="broken"):
        run(monkeypatch, OSError(errno.EIO, "broken"))
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, ZeroDivisionError())


def test_a_reader_that_leaves_early():
    command = f"{sys.executable} -m opendino config show | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[0].startswith("data:")


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "opendino", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"opendino {__version__}\n"
