# SPDX-License-Identifier: Apache-2.0
"""The order of the house: what a linter does not hold."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "opendino"
FILES = sorted(SOURCE.rglob("*.py"))
ROOMS_WITHOUT_AN_IDEA = {"utils", "util", "helpers", "common", "misc"}
LONGEST_FUNCTION = 60
LONGEST_FILE = 450


def name_of(path):
    return str(path.relative_to(SOURCE))


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_is_in_order(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text)), "a module says in a sentence what it is"
    assert not ROOMS_WITHOUT_AN_IDEA & {part.removesuffix(".py").strip("_") for part in path.relative_to(SOURCE).parts}
    assert text.isascii(), "ASCII only"
    assert len(text.splitlines()) <= LONGEST_FILE, "a file this long holds a second idea"
    for function in functions(path):
        docstring = ast.get_docstring(function, clean=False) or ""
        length = (function.end_lineno or 0) - function.lineno + 1 - len(docstring.splitlines())
        assert length <= LONGEST_FUNCTION, f"{function.name} has {length} lines"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name not in ("__init__.py", "__main__.py", "axes.py", "errors.py")], ids=name_of
)
def test_file_has_a_twin_among_the_tests(path):
    relative = path.relative_to(SOURCE)
    twin = ROOT / "tests" / "unit" / relative.parent / f"test_{relative.stem.lstrip('_')}.py"
    assert twin.is_file(), f"write {twin.relative_to(ROOT)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unpickled(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func)
        if called.endswith("torch.load"):
            keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert keywords.get("weights_only") == "True", f"line {call.lineno}: torch.load without weights_only=True"
        if called.endswith("np.load"):
            assert "allow_pickle" not in {word.arg for word in call.keywords}


@pytest.mark.parametrize("room", ["train"])
def test_the_table_of_a_room_names_every_file(room):
    home = SOURCE / room
    table = ast.get_docstring(ast.parse((home / "__init__.py").read_text(encoding="utf-8"))) or ""
    named = {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")} - {"file"}
    assert named == {path.stem for path in home.glob("*.py")} - {"__init__"}
