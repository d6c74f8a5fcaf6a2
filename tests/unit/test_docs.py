# SPDX-License-Identifier: Apache-2.0
"""The documents point at what is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PLACES = ("losses", "layers", "models", "data", "optim", "methods", "train", "eval", "view", "checkpoint", "parallel")


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
    verbs = {path.stem for path in (ROOT / "src/opendino/cli").glob("[a-z]*.py")}
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
