# SPDX-License-Identifier: Apache-2.0
"""Several results side by side: one Markdown table for each protocol and data, one row a model."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from opendino.errors import ConfigError
from opendino.eval._results import Results, markdown_table, number, read


def gather(places: Sequence[str]) -> list[Results]:
    """Results of files, and of folders of them (a run's are in RUN/eval), in the order given.

    Raises:
        ConfigError: there is no such place, or no results in it.
    """
    found: list[Results] = []
    for place in places:
        path = Path(place)
        path = path / "eval" if (path / "eval").is_dir() else path
        if not path.exists():
            raise ConfigError(f"{place}: there is no such file or folder; give results files, or folders of them")
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"{place}: holds no results; `opendino eval PROTOCOL MODEL ... out={place}` writes them")
        found += [_read(file) for file in files]
    return found


def tables(results: Iterable[Results], width: int | None = None) -> str:
    """One table for each protocol and data, headed by both; models in rows, figures in columns.

    A figure that a model lacks is left empty. Models are told apart by their source.

    Args:
        results: in any order.
        width: most characters of a line; tables that are wider stand on their side, a few models at a time. None for
            no such limit, as in a document.
    """
    groups: dict[tuple[str, str], list[Results]] = {}
    for one in results:
        groups.setdefault((one.protocol, data_name(one)), []).append(one)
    parts = []
    for (protocol, data), members in sorted(groups.items(), key=lambda item: item[0]):
        figures = list(dict.fromkeys(name for one in members for name in one.figures))
        rows = [[str(one.model.get("source", "?")), *(_cell(one, name) for name in figures)] for one in members]
        parts.append(f"**{protocol}**, {data}\n\n{_within(width, ['model', *figures], rows)}")
    return "\n\n".join(parts)


def _within(width: int | None, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, or, where it is wider than a line, its columns as rows, with as many models side by side as fit."""
    table = markdown_table(header, rows)
    if width is None or _width(table) <= width:
        return table
    parts: list[str] = []
    first = 0
    while first < len(rows):
        last = first + 1
        while last < len(rows) and _width(_turned(header, rows[first : last + 1])) <= width:
            last += 1
        parts.append(_turned(header, rows[first:last]))
        first = last
    return "\n\n".join(parts)


def _turned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first, *others = zip(header, *rows, strict=True)
    return markdown_table(first, others)


def _width(table: str) -> int:
    return len(table.partition("\n")[0])


def data_name(results: Results) -> str:
    """What a protocol was measured on."""
    data = results.data
    return str(data.get("val") or data.get("source") or data.get("data") or "unnamed data")


def _cell(results: Results, name: str) -> str:
    return number(results.figures[name]) if name in results.figures else ""


def _read(file: Path) -> Results:
    try:
        return read(file)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{file}: holds no results that this version can read ({error}); leave it out") from None
