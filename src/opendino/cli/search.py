# SPDX-License-Identifier: Apache-2.0
"""`opendino search`: images like an image, and near-duplicates, in an embedded folder."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

from opendino.cli._words import split
from opendino.errors import ConfigError

SUMMARY = "images like an image, and near-duplicates, in an embedded folder"
USAGE = """
usage: opendino search build      EMBEDDED [out=DIR] [feature=NAME] [search.engine=hnsw]
       opendino search query      INDEX QUERY ... [k=10] [page=results.html]
       opendino search duplicates INDEX [threshold=0.9] [page=duplicates.html] [list=spare.txt]

EMBEDDED  a folder that `opendino embed` finished
INDEX     what build wrote, or EMBEDDED itself (its index is then built in EMBEDDED/index)
QUERY     an image file, or row:12 for row 12 of the data set

build       unit vectors that are mapped, not read; engine exact compares with all of them, hnsw and ivf (faiss, from
            about a million images on) with a part
query       the k images of largest cosine with each query, as lines and as a page with thumbnails
duplicates  groups of images above a cosine, the one of most pixels first; list=FILE gets the names of all others

Some settings:
  model=runs/mine (where the model is now) device=cpu search.ef=256 search.nprobe=64
"""
_MODES = ("build", "query", "duplicates")
_MANY = 0.5  # of all images: hardly any set has so many copies


@dataclass(frozen=True)
class SearchSettings:
    """Settings of `opendino search`.

    Attributes:
        k: images for each query.
        threshold: cosine above which two images are near-duplicates.
        neighbours: of each image that are looked at for near-duplicates.
        page: HTML file; none when empty.
        list: file of the names of spare images; none when empty.
        model: where the model is now; empty for where it was.
        device: of the model.
    """

    k: int = 10
    threshold: float = 0.9
    neighbours: int = 20
    page: str = ""
    list: str = ""
    model: str = ""
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k = {self.k}: give 1 or more")
        if self.page and Path(self.page).suffix.lower() not in (".html", ".htm"):
            raise ConfigError(f"page = {self.page}: is written as HTML; give a name in .html")


def main(argv: list[str]) -> int:
    """Build, ask, or find duplicates."""
    names, words = split(argv, most=len(argv))
    mode = names[0] if names else ""
    if mode not in _MODES:
        close = difflib.get_close_matches(mode, _MODES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_MODES)}"
        said = f"opendino search {mode}: no such thing" if mode else "opendino search: say what to do"
        raise ConfigError(f"{said}; {hint}")
    wanted = {"build": 2, "query": 3, "duplicates": 2}[mode]
    if len(names) < wanted or (mode != "query" and len(names) > wanted):
        raise ConfigError(f"opendino search {mode}: wanted {USAGE.split(mode)[1].splitlines()[0].strip()}; see --help")
    from opendino import logs

    logs.setup()
    return {"build": _build, "query": _query, "duplicates": _duplicates}[mode](names[1:], words)


def _build(names: list[str], words: list[str]) -> int:
    from opendino.config import load
    from opendino.neighbours.exact import SearchConfig
    from opendino.search import build

    @dataclass(frozen=True)
    class BuildSettings:
        out: str = ""
        feature: str = ""
        search: SearchConfig = field(default_factory=SearchConfig)

    settings = load(BuildSettings, None, words)
    index = build(names[0], settings.out, settings.feature, settings.search)
    print(f"{len(index)} vectors of {index.vectors.dim} numbers ({index.about['feature']}), {index.config.engine}")
    print(f"written: {index.folder}")
    return 0


def _settings(words: list[str]) -> SearchSettings:
    from opendino.config import load
    from opendino.files import check_place

    settings = load(SearchSettings, None, words)
    for name in ("page", "list"):
        path = getattr(settings, name)
        if path:
            check_place(Path(path).parent, f"{name} = {path}")
    return settings


def _query(names: list[str], words: list[str]) -> int:
    from opendino.search import open_index
    from opendino.search.asking import answer, open_query

    settings = _settings(words)
    index = open_index(names[0])
    queries = [open_query(index, name, settings.model, settings.device) for name in names[1:]]
    hits = answer(index, queries, settings.k)
    for query, found in zip(queries, hits, strict=True):
        print(query.name)
        for hit in found:
            print(f"  {hit.score:.4f}  row {hit.row}  {hit.path}")
    if settings.page:
        from opendino.search.page import results_page

        pictures = [(query.name, query.picture) for query in queries]
        print(f"written: {results_page(settings.page, index, pictures, hits)}")
    return 0


def _duplicates(names: list[str], words: list[str]) -> int:
    from opendino.errors import DataError
    from opendino.files import write_whole
    from opendino.search import find_duplicates, open_index

    settings = _settings(words)
    index = open_index(names[0])
    groups = find_duplicates(index, settings.threshold, settings.neighbours)
    for group in groups[:20]:
        print(f"keep {group.images[0].path}")
        for hit in group.spare:
            print(f"  {hit.score:.4f}  {hit.path}")
    spare = [hit for group in groups for hit in group.spare]
    more = ", the 20 largest are shown" if len(groups) > 20 else ""
    said = f"{len(groups)} group{'s' if len(groups) != 1 else ''}{more}"
    print(f"{said}; {len(spare)} of {len(index)} images are spare")
    if len(spare) > _MANY * len(index):
        higher = 1 - (1 - settings.threshold) / 10
        print(
            f"so many rarely are copies: to this model images that differ are alike as well, as to one that has hardly "
            f"been trained, and threshold={settings.threshold:g} does not fit it; try threshold={higher:.6g}, or "
            f"another model, and look at the groups with page=FILE.html before anything is removed"
        )
    chained = sum(hit.score <= settings.threshold for hit in spare)
    if chained:
        print(f"{chained} of these are like the image to keep only by way of others; look at them with page=")
    if settings.list:
        text = "".join(f"{hit.path}\n" for hit in spare)
        print(f"written: {write_whole(Path(settings.list), text, error=DataError)}")
    if settings.page:
        from opendino.search.page import duplicates_page

        print(f"written: {duplicates_page(settings.page, index, groups, settings.threshold)}")
    return 0
