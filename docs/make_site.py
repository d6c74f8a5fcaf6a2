# SPDX-License-Identifier: Apache-2.0
"""The site of these documents: Markdown pages as they are, and a reference made of the docstrings; `make docs`.

Pages are copied beside each other as they lie in the checkout, so every link between them leads to the same place on
the site as on a code host. Formulas become MathML. A link that leads nowhere, a page that the menu does not name and a
name that does not resolve end the build. Nothing is fetched.

    SITE_URL=https://HOST/SOME/PATH/ make docs

says where the site will stand. All pages are linked relatively and need not know, but 404.html does: it is shown in
place of any page that is not there, at whatever depth.
"""

import ast
import logging
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from latex2mathml.converter import convert
from mkdocs.commands import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "build" / "site"
PAGES = SITE / "pages"
PACKAGE = ROOT / "src" / "opendino"
FENCED = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\w$])\$([^\s$](?:[^$]*?[^\s$])?)\$(?!\w)", re.DOTALL)


def main() -> int:
    """Copy, write, build; returns 1 with what is wrong printed by mkdocs."""
    shutil.rmtree(SITE, ignore_errors=True)
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        _write(page.relative_to(ROOT), _for_the_site(page.read_text(encoding="utf-8")))
    for beside in [ROOT / "docs" / "site.css", *(ROOT / "docs" / "pictures").glob("*.png")]:
        (PAGES / beside.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(beside, PAGES / beside.relative_to(ROOT))
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    config = load_config(str(ROOT / "mkdocs.yml"), nav=_menu(_reference()))
    config.plugins.on_startup(command="build", dirty=False)
    build.build(config)
    config.plugins.on_shutdown()
    _check_not_found(SITE / "html", urlsplit(config.site_url or "/").path)
    print(f"{len(list((SITE / 'html').rglob('*.html')))} pages: {(SITE / 'html' / 'index.html').relative_to(ROOT)}")
    return 0


def _check_not_found(site: Path, place: str) -> None:
    """End the build where a link of 404.html leads nowhere on a host that has the site at `place`."""
    for link in re.findall(r'(?:href|src)="([^"#?]+)', (site / "404.html").read_text(encoding="utf-8")):
        if "://" not in link and not (link.startswith(place) and (site / unquote(link.removeprefix(place))).exists()):
            raise SystemExit(f"docs: 404.html links to {link}, which is not there")


def _write(name: Path, text: str) -> None:
    (PAGES / name).parent.mkdir(parents=True, exist_ok=True)
    (PAGES / name).write_text(text, encoding="utf-8")


def _for_the_site(text: str) -> str:
    """What a code host reads by itself and Python-Markdown does not: formulas, Markdown within `<div>`."""
    parts = FENCED.split(text)
    for number in range(0, len(parts), 2):
        parts[number] = FORMULA.sub(_formula, parts[number]).replace('<div dir="rtl">', '<div dir="rtl" markdown="1">')
    return "".join(parts)


def _formula(found: re.Match) -> str:
    source = (found[1] or found[2]).replace(r"\arg\max", r"\operatorname{arg\,max}")
    made = convert(source, display="block" if found[1] else "inline")
    if ">\\" in made:
        raise SystemExit(f"docs: this formula is not understood: {source}")
    return made


def _reference() -> dict[str, list[str]]:
    """Write a page for each public module; returns the pages by room."""
    rooms: dict[str, list[str]] = {}
    index = ["# Reference\n\nEvery public module, from its docstrings; `src/opendino/` in order of its rooms.\n"]
    for path in sorted(
        PACKAGE.rglob("*.py"), key=lambda path: (path.parent.relative_to(PACKAGE).as_posix(), path.name)
    ):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        if any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        name = ".".join(part for part in parts if part != "__init__")
        room = ".".join(parts[:-1])
        if room not in rooms:
            index.append(f"\n## {room}\n")
        page = f"docs/reference/api/{name}.md"
        _write(Path(page), f"# {name}\n\n::: {name}\n")
        rooms.setdefault(room, []).append(page)
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        index.append(f"- [{name}]({name}.md): {summary}")
    _write(Path("docs/reference/api/README.md"), "\n".join(index) + "\n")
    return rooms


def _menu(rooms: dict[str, list[str]]) -> list:
    """The site's menu: the folders of `docs/` in an order to read them, then the reference, then the root's pages."""
    arabic = re.search(r"\[([^]]+)\]\(README\.ar\.md\)", (PAGES / "README.md").read_text(encoding="utf-8"))
    menu: list = ["README.md", {arabic[1]: "README.ar.md"}, "docs/README.md", "docs/start.md"]
    for title, folder in (("Tutorials", "tutorials"), ("How to", "how-to"), ("The method", "method")):
        found = sorted(path.relative_to(PAGES).as_posix() for path in (PAGES / "docs" / folder).glob("*.md"))
        menu.append({title: sorted(found, key=lambda name: not name.endswith("README.md"))})
    rest = sorted(path.relative_to(PAGES).as_posix() for path in (PAGES / "docs").glob("*.md"))
    menu.extend(page for page in rest if page not in menu)
    tables = sorted(path.relative_to(PAGES).as_posix() for path in (PAGES / "docs" / "reference").glob("*.md"))
    modules = [{room: pages} for room, pages in rooms.items()]
    menu.append({"Reference": [*tables, "docs/reference/api/README.md", *modules]})
    project = sorted(path.name for path in PAGES.glob("*.md") if not path.name.startswith("README"))
    menu.append({"The project": [*project, "docs/pictures/README.md"]})
    return menu


if __name__ == "__main__":
    sys.exit(main())
