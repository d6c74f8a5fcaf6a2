# SPDX-License-Identifier: Apache-2.0
"""Results as one HTML file with thumbnails; the page itself is `view/report.py`'s."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from opendino.data.decode import Decoded
from opendino.errors import DataError
from opendino.search.duplicates import Group
from opendino.search.index import Hit, Index
from opendino.view import report
from opendino.view.pca import shown

_SIDE = 224  # pixels of a thumbnail
_MOST_GROUPS, _MOST_IMAGES = 200, 24  # on a page


def results_page(
    path: str | Path, index: Index, queries: Sequence[tuple[str, Decoded]], hits: Sequence[Sequence[Hit]]
) -> Path:
    """Each query beside what was found.

    Args:
        path: file.
        index: that was asked.
        queries: name and picture of each.
        hits: what was found for each.
    """
    sections = []
    for (name, picture), found in zip(queries, hits, strict=True):
        pictures = [thumbnail(picture), *(_picture(index, hit) for hit in found)]
        captions = ["query", *(f"{hit.score:.3f} {Path(hit.path).name}" for hit in found)]
        alts = [name, *(hit.path for hit in found)]
        grid = report.image_grid(pictures, alts=alts, captions=captions, width=150, lossy=True)
        sections.append(report.section(name, grid))
    lead = f"The images most like each query among {len(index)}, by the cosine of {index.about['feature']}."
    return report.write(path, report.page("Search", sections, lead=lead, footer=f"Model: {index.model}"))


def duplicates_page(path: str | Path, index: Index, groups: Sequence[Group], threshold: float) -> Path:
    """Groups of near-duplicates, the image to keep first.

    Args:
        path: file.
        index: of all images.
        groups: of `find_duplicates`.
        threshold: they were found with.
    """
    sections = []
    for number, group in enumerate(groups[:_MOST_GROUPS], 1):
        few = group.images[:_MOST_IMAGES]
        grid = report.image_grid(
            [_picture(index, hit) for hit in few],
            alts=[hit.path for hit in few],
            captions=["keep", *(f"{hit.score:.3f} {Path(hit.path).name}" for hit in few[1:])],
            width=150,
            lossy=True,
        )
        sections.append(report.section(f"{number}. {len(group.images)} images", grid))
    spare = sum(len(group.spare) for group in groups)
    lead = (
        f"{len(groups)} groups among {len(index)} images at cosine > {threshold:g}; without the {spare} spare ones "
        f"{len(index) - spare} images are left."
    )
    if len(groups) > _MOST_GROUPS:
        lead += f" The {_MOST_GROUPS} largest groups are shown."
    return report.write(path, report.page("Near-duplicates", sections, lead=lead, footer=f"Model: {index.model}"))


def thumbnail(image: Decoded, side: int = _SIDE) -> Image.Image:
    """A small copy, as people look at it."""
    small = shown(image).copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    return small


def _picture(index: Index, hit: Hit) -> Image.Image:
    try:
        return thumbnail(index.dataset.image(hit.row))
    except (DataError, OSError):  # moved since: the name is what is left
        return Image.new("RGB", (_SIDE, _SIDE), "lightgray")
