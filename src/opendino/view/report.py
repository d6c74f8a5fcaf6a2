# SPDX-License-Identifier: Apache-2.0
"""One HTML file that holds everything it shows: curves, pictures, tables; nothing is fetched, nothing runs.

Functions return pieces of HTML; `section` and `page` put them together, `write` puts them on the disk. All text that
comes in is escaped. Read next: `_chart.py` for the curves.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Literal, NewType

import numpy as np
from PIL import Image

from opendino.errors import ConfigError, DataError
from opendino.files import write_whole
from opendino.view._chart import COLOURS_DARK, Number, Points, line_chart, swatch

Html = NewType("Html", str)
"""Text that is HTML already; made only by functions of this file."""

Picture = Image.Image | np.ndarray
"""A Pillow image, or uint8 [H, W] or [H, W, 3]."""

Cell = str | int | float | None
Mark = Literal["right", "wrong", ""]

_LOSSY_FROM = 128 * 128  # pixels
_PIXELATED_BELOW = 100  # pixels, longer side: small pictures are shown by their pixels, not blurred
_MARKS = {"right": ("&#10003;", "right"), "wrong": ("&#10007;", "wrong"), "": ("", "")}


def page(title: str, sections: Sequence[Html], *, lead: str = "", footer: str = "") -> Html:
    """The whole file.

    Args:
        title: heading and name in the browser.
        sections: made by `section`.
        lead: sentences below the title.
        footer: small print below all.
    """
    body = [f"<h1>{escape(title)}</h1>"]
    body += [f'<p class="lead">{escape(lead)}</p>'] if lead else []
    body += sections
    body += [f"<footer>{escape(footer)}</footer>"] if footer else []
    return Html(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: Html, text: str = "") -> Html:
    """A heading, sentences below it, and pieces."""
    head = f"<h2>{escape(title)}</h2>" + (f"<p>{escape(text)}</p>" if text else "")
    return Html(f"<section>{head}{''.join(parts)}</section>")


def paragraph(text: str) -> Html:
    """Sentences."""
    return Html(f"<p>{escape(text)}</p>")


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    caption: str = "",
    strong_rows: Sequence[int] = (),
    digits: int = 1,
) -> Html:
    """A table; columns of numbers stand to the right.

    Args:
        header: one word a column.
        rows: texts, numbers, or None for an empty cell.
        caption: above the table.
        strong_rows: positions of the rows to look at.
        digits: after the point, of floats.
    """
    for row in rows:
        if len(row) != len(header):
            raise DataError(
                f"table {caption!r}: a row has {len(row)} cells, the header {len(header)}; give one for each"
            )
    numeric = [all(not isinstance(row[i], str) for row in rows) for i in range(len(header))]
    classes = [' class="number"' if is_number else "" for is_number in numeric]
    head = "".join(f'<th scope="col"{c}>{escape(word)}</th>' for word, c in zip(header, classes, strict=True))
    lines = []
    for position, row in enumerate(rows):
        cells = "".join(f"<td{c}>{_cell(value, digits)}</td>" for value, c in zip(row, classes, strict=True))
        strong = ' class="strong"' if position in strong_rows else ""
        lines.append(f"<tr{strong}>{cells}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    # The wrapper scrolls sideways on a narrow screen, and can be reached by the keyboard to do so.
    return Html(
        f'<div class="scroll" tabindex="0"><table>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def figure_curves(
    curves: Mapping[str, Points],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    levels: Mapping[str, Number] | None = None,
    caption: str = "",
) -> Html:
    """Lines over a common abscissa, with a legend.

    Args:
        curves: name to (abscissae, ordinates).
        title: above the drawing.
        x_label: of the abscissa.
        y_label: of the ordinate.
        levels: name to a height to compare with, drawn across.
        caption: below the drawing.
    """
    drawing = line_chart(curves, title=title, x_label=x_label, y_label=y_label, levels=levels)
    names = (
        "".join(f"<span>{swatch(i)}{escape(name)}</span>" for i, name in enumerate(curves)) if len(curves) > 1 else ""
    )
    legend = f'<div class="legend">{names}</div>' if names else ""
    return _figure(f"{legend}{drawing}", title, caption)


def image(picture: Picture, *, alt: str, title: str = "", caption: str = "", lossy: bool = False) -> Html:
    """One picture as wide as the page allows.

    Args:
        picture: see `Picture`.
        alt: what is to be seen, for those who do not see it.
        title: above the picture.
        caption: below the picture.
        lossy: JPEG, for photographs; PNG otherwise.
    """
    return _figure(_img(picture, alt, lossy), title, caption)


def image_grid(
    pictures: Sequence[Picture],
    *,
    alts: Sequence[str],
    captions: Sequence[str] | None = None,
    marks: Sequence[Mark] | None = None,
    title: str = "",
    caption: str = "",
    columns: int | None = None,
    width: int = 120,
    lossy: bool = False,
) -> Html:
    """Pictures side by side.

    Args:
        pictures: see `Picture`.
        alts: what is to be seen in each.
        captions: below each.
        marks: "right" or "wrong", shown as a sign and a border; "" for neither.
        title: above all.
        caption: below all.
        columns: pictures in a row; None takes as many as the page has room for.
        width: least width of a picture, CSS pixels.
        lossy: JPEG for pictures of photographic size.
    """
    captions, marks = captions or [""] * len(pictures), marks or [""] * len(pictures)
    if not len(pictures) == len(alts) == len(captions) == len(marks):
        raise DataError(
            f"image grid {title!r}: {len(pictures)} pictures, {len(alts)} alts, {len(captions)} captions and "
            f"{len(marks)} marks; give one of each for every picture"
        )
    cells = []
    for picture, alt, below, mark in zip(pictures, alts, captions, marks, strict=True):
        sign, word = _MARKS[mark]
        said = f"{alt} ({word})" if word else alt
        note = f"<span>{sign} {escape(below)}</span>" if sign or below else ""
        cells.append(f'<div class="cell {word}">{_img(picture, said, lossy)}{note}</div>')
    tracks = f"repeat({columns}, minmax(0, 1fr))" if columns else f"repeat(auto-fill, minmax({width}px, 1fr))"
    limit = f";max-width:{columns * 2 * width}px" if columns else ""
    grid = f'<div class="pictures" style="grid-template-columns:{tracks}{limit}">{"".join(cells)}</div>'
    return _figure(grid, title, caption)


def write(path: Path | str, html: Html) -> Path:
    """Put a page on the disk; a reader never sees half of it.

    Raises:
        DataError: it cannot be written.
    """
    return write_whole(Path(path), html, error=DataError)


def is_page(out: str | Path) -> bool:
    """Whether the name of a picture's file asks for a page that holds it, or for a PNG.

    Raises:
        ConfigError: for neither.
    """
    ending = Path(out).suffix.lower()
    if ending not in (".png", ".html", ".htm"):
        raise ConfigError(f"out = {out}: pictures are written as PNG, or as a page; give a name in .png or .html")
    return ending != ".png"


def _figure(inner: str, title: str, caption: str) -> Html:
    head = f"<h3>{escape(title)}</h3>" if title else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{head}{inner}{below}</figure>")


def _img(picture: Picture, alt: str, lossy: bool) -> str:
    shown = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    as_jpeg = lossy and shown.width * shown.height >= _LOSSY_FROM and shown.mode in ("RGB", "L")
    buffer = io.BytesIO()
    if as_jpeg:
        shown.save(buffer, "JPEG", quality=88)
    else:
        shown.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    crisp = ' class="crisp"' if max(shown.size) < _PIXELATED_BELOW else ""
    return (
        f'<img{crisp} src="data:image/{"jpeg" if as_jpeg else "png"};base64,{data}" alt="{escape(alt)}" '
        f'width="{shown.width}" height="{shown.height}">'
    )


def _cell(value: Cell, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return escape(str(value))


def _style() -> str:
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    dark = "".join(
        f"  .line-{i} {{ stroke: {colour}; }} .dot-{i} {{ fill: {colour}; }}\n" for i, colour in enumerate(COLOURS_DARK)
    )
    return f"{css}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"
