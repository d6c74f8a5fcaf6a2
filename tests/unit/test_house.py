# SPDX-License-Identifier: Apache-2.0
"""The order of the house: what a linter does not hold."""

import ast
import inspect
from pathlib import Path

import pytest

from opendino.models.vision_transformer import VisionTransformer

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


RUNS_TEXT = {"eval", "exec", "compile", "os.system", "os.popen", "pty.spawn"}
TO_THE_NETWORK = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "telnetlib"}
BY_REQUEST = {
    "huggingface_hub": {
        "checkpoint/_fetch.py",
        "curate/_sources.py",
        "hf/_places.py",
        "hf/_loading.py",
        "eval/adapters/hf.py",
    },
    "wandb": {"train/trackers.py"},
    "mlflow": {"train/trackers.py"},
    "ray": {"stages/engines.py"},
    "fastapi": {"serve/app.py", "serve/bodies.py"},
    "uvicorn": {"serve/running.py"},
}
"""Packages that reach other machines, and the files that a user's words lead to them."""


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_runs_text_or_speaks_to_others_unasked(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set(imports(tree))
    assert not found & TO_THE_NETWORK or (name_of(path) == "serve/running.py" and found & TO_THE_NETWORK == {"socket"})
    for package, places in BY_REQUEST.items():
        assert package not in found or name_of(path) in places, (
            f"{package}: add {name_of(path)} where a user asks for it"
        )
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called, words = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert called not in RUNS_TEXT, f"line {call.lineno}: {called}"
        assert words.get("shell", "False") == "False", f"line {call.lineno}: a shell"
        if called.startswith("subprocess."):
            assert isinstance(call.args[0], ast.List | ast.Name), f"line {call.lineno}: words, not a text"
        if called in ("yaml.load", "yaml.load_all"):  # the house's own is a SafeLoader
            assert words.get("Loader") == "_Loader" and name_of(path) == "config.py"
        assert called not in ("yaml.unsafe_load", "yaml.full_load"), f"line {call.lineno}: {called}"
        if called in ("time.time", "datetime.now", "datetime.datetime.now"):  # jumps; durations are not taken by it
            assert name_of(path) == "train/trackers.py"
        if called == "torch.jit.load":  # runs what the file holds: a user's own embedder, and a file written just now
            assert name_of(path) in ("curate/_embedders.py", "export/program.py")
        if called.endswith(("_url_to_file", "urlretrieve", "load_state_dict_from_url")):
            assert name_of(path) == "checkpoint/_fetch.py"


def settings():
    """Fields of every config dataclass: (class, field, file)."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Settings")) and node.decorator_list:
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                        yield node.name, field.target.id, name_of(path)


def test_every_setting_is_read():
    """A field of a config that no code looks at is a promise that nobody keeps."""
    read = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                for inner in ast.walk(node):  # a check is no use
                    inner.checked = True
            elif isinstance(node, ast.Attribute) and not hasattr(node, "checked"):
                read.add(node.attr)
    found = list(settings())
    assert len(found) > 200
    unread = [one for one in found if one[1] not in read]
    # These go on as they are, as the arguments of the network.
    arguments = inspect.signature(VisionTransformer).parameters
    assert [one for one in unread if one[0] != "BackboneConfig" or one[1] not in arguments] == []
