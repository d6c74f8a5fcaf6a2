# SPDX-License-Identifier: Apache-2.0
"""The documents point at what is there."""

import email.message
import importlib
import itertools
import re
import runpy
import tomllib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PLACES = ("losses", "layers", "models", "data", "optim", "methods", "train", "eval", "view", "checkpoint", "parallel")
MADE = {"extend.md": ("count",)}
"""Pages that make files, and the verbs among them; test_contributing.py makes them."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tests_and_verbs_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / name).exists() or name.endswith("/test_x.py"), f"{page.name}: {name}"
    verbs = {path.stem for path in (ROOT / "src/opendino/cli").glob("[a-z]*.py")} | set(MADE.get(page.name, ()))
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for verb in re.findall(r"^opendino (\w+)", block, re.MULTILINE):
            assert verb in verbs, f"{page.name}: opendino {verb}"


def test_the_pages_of_the_method_name_files_that_exist():
    index = (ROOT / "docs/method/README.md").read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(PLACES)})/[\w/]*(?:\.py)?)`", index)
    assert len(named) > 10
    for name in named:
        assert (ROOT / "src/opendino" / name).exists(), name


def test_every_page_is_in_the_index():
    """A page that nothing leads to is never read."""
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.name in texts, page.relative_to(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_places_within_pages_exist(page):
    """`page.md#part` is the anchor that a code host and the site make of a heading."""
    for target, part in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            text = ((page.parent / target) if target else page).read_text(encoding="utf-8")
            anchors = {
                re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-")
                for one in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            }
            assert part in anchors, f"{page.name}: {target}#{part}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lists_and_tables_begin_behind_an_empty_line(page):
    """A code host forgives it, the site's Markdown does not: the list would run on in the paragraph."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = ["", *text.splitlines()]
    for before, line in itertools.pairwise(lines):
        if re.match(r"(- |\d+\. )", line) and before.strip():
            assert re.match(r"\s*(- |\d+\. )|\s{2,}", before), f"{page.name}: {line}"
        if line.startswith("|") and before.strip():
            assert before.startswith("|"), f"{page.name}: {line}"


def test_names_of_the_package_resolve():
    """`opendino.x.y` in a page, or in its Python, is a module or an attribute of one."""
    for page in PAGES:
        for name in set(re.findall(r"(?<![\w./-])opendino(?:\.[A-Za-z_]\w*)+", page.read_text(encoding="utf-8"))):
            if page.name not in ("CHANGELOG.md", "LOG.md", *MADE) and not name.endswith((".md", ".py")):
                assert resolves(name), f"{page.name}: {name}"


def resolves(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_every_loss_schedule_and_method_has_its_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/method").glob("*.md"))
    for room in ("losses", "optim", "methods"):
        for path in (ROOT / "src/opendino" / room).glob("[a-z]*.py"):
            assert f"{room}/{path.name}" in pages or path.name in ("method.py", "settings.py"), f"{room}/{path.name}"


def test_the_method_pages_say_where_it_is_from_and_whose_file_it_is():
    for page in (ROOT / "docs/method").glob("[a-z]*.md"):
        text = page.read_text(encoding="utf-8")
        assert "**Source.**" in text, page.name
        assert re.search(r"`(tests/[\w/]+\.py)`", text), f"{page.name} names no test that holds it"
        assert re.search(rf"`(?:{'|'.join(PLACES)}|fast)/\w+", text), f"{page.name} names no file"


def test_settings_in_answers_are_settings():
    """Every question of troubleshooting.md has an answer, and each `key=value` in one is a setting that there is."""
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    answers = re.findall(r"^\*\*.+?\*\*.*?(?=^\*\*|^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert len(answers) >= 25
    settings = set(re.findall(r"^\| `([\w.]+)`", (ROOT / "docs/reference/configuration.md").read_text(), re.MULTILINE))
    for answer in answers:
        assert re.search(r"`[^`]*(?:opendino|torchrun|python|=|=\S)[^`]*`", answer), f"no command: {answer[:60]}"
        for key in re.findall(r"(?<=[\s`])([a-z]+\.[a-z_]+)=", answer):
            assert key in settings, key


def test_dependencies_are_those_of_the_project():
    page = (ROOT / "docs/reference/dependencies.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for one in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        name = re.match(r"[\w-]+", one)[0]
        assert f"| {name} | `{one[len(name) :]}` |" in page, f"{one}: run docs/make_dependencies.py"


@pytest.mark.parametrize(
    ("name", "stated", "said"),
    [
        ("some-tool", "MIT", "MIT"),
        ("nvidia-cudnn-cu13", "LicenseRef-NVIDIA-Proprietary", "NVIDIA's own: with CUDA builds of torch alone"),
        ("some-tool", "GPL-3.0", None),
        ("some-tool", "Proprietary", None),
    ],
)
def test_licences_are_told_or_refused(name, stated, said):
    metadata = email.message.Message()
    metadata["License-Expression"] = stated
    licence = runpy.run_path(str(ROOT / "docs/make_dependencies.py"))["licence"]
    package = types.SimpleNamespace(name=name, metadata=metadata)
    if said is None:
        with pytest.raises(SystemExit, match="not among the permissive"):
            licence(package)
    else:
        assert licence(package).startswith(said)


def test_what_is_installed_is_permissive():
    """The script ends at any other licence."""
    assert "## the package itself" in runpy.run_path(str(ROOT / "docs/make_dependencies.py"))["main"]([])
