# SPDX-License-Identifier: Apache-2.0
"""Line charts as inline SVG that takes the colours of the page around it; used by `report.py`.

Lines differ by colour and by dashes, so they can be told apart without seeing colours; the colours are those of Okabe
and Ito (2008), which stay apart in the common kinds of colour blindness. The drawing has the look of a light page in
its attributes; the page's style sheet (`report.css`) wins over them, and takes lighter colours on a dark ground.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

Number = int | float
Points = tuple[Sequence[Number], Sequence[Number]]
"""Abscissae and ordinates of a line, equally many."""

DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 2", "12 3")
COLOURS_LIGHT = ("#0072b2", "#d55e00", "#007a5a", "#a3487c", "#8a6a00", "#2f7fb5", "#444444")
COLOURS_DARK = ("#56b4e9", "#ff9248", "#2fc79a", "#e79ac4", "#e6b422", "#9ad0f5", "#cccccc")

_WIDTH, _HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 46
_MOST_POINTS = 400
_MARKED_POINTS = 40


def line_chart(
    curves: Mapping[str, Points],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    levels: Mapping[str, Number] | None = None,
) -> str:
    """An SVG element with axes, grid and one line a curve.

    Args:
        curves: name to points; values that are not finite leave a gap, long curves are thinned to means.
        title: what a screen reader says first.
        x_label: of the abscissa.
        y_label: of the ordinate.
        levels: name to a height, drawn as a thin line across and named in the drawing.
    """
    curves = {name: thin(*points) for name, points in curves.items()}
    levels = levels or {}
    xs = _finite([x for points in curves.values() for x in points[0]])
    ys = _finite([y for points in curves.values() for y in points[1]]) + list(levels.values())
    x_axis, y_axis = _Axis(xs, _LEFT, _WIDTH - _RIGHT), _Axis(ys, _HEIGHT - _BOTTOM, _TOP)
    parts = [*_grid(x_axis, y_axis, x_label, y_label)]
    parts += [_level(name, height, y_axis) for name, height in levels.items()]
    parts += [_line(i, name, points, x_axis, y_axis) for i, (name, points) in enumerate(curves.items())]
    summary = "; ".join(_in_words(name, points) for name, points in curves.items())
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="13" font-family="sans-serif" '
        f'aria-label="{escape(f"{title}. {summary}")}">'
        f"{''.join(parts)}</svg>"
    )


def swatch(index: int) -> str:
    """A short piece of a line, for a legend."""
    return f'<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true"><path d="M0 4H28" {_stroke(index)}/></svg>'


def thin(xs: Sequence[Number], ys: Sequence[Number], most: int = _MOST_POINTS) -> Points:
    """Points of a curve, or, where there are too many, the mean of each run of neighbours, first and last kept."""
    xs, ys = [float(x) for x in xs], [float(y) for y in ys]
    if len(xs) != len(ys):
        raise ValueError(f"a curve of {len(xs)} abscissae has {len(ys)} ordinates; give one for each")
    if len(xs) <= most:
        return xs, ys
    size = math.ceil((len(xs) - 2) / (most - 2))
    runs = [slice(start, min(start + size, len(xs) - 1)) for start in range(1, len(xs) - 1, size)]
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return [xs[0], *(mean(xs[run]) for run in runs), xs[-1]], [ys[0], *(mean(ys[run]) for run in runs), ys[-1]]


def ticks(low: Number, high: Number, about: int = 7) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that lie between the bounds."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short(value: Number) -> str:
    """A number as people label an axis with it: 12k, 1.5M, 0.25, 2e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and letter != "k"):
            return f"{value / size:g}{letter}"
    return f"{value:.6g}"


class _Axis:
    """Values to places in the drawing."""

    def __init__(self, values: Sequence[Number], start: Number, end: Number) -> None:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if low == high:
            low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
        margin = 0.03 * (high - low)
        # Zero stays the bound of what begins there.
        self.low = low if low == 0 else low - margin
        self.high = high + margin
        self.start, self.end = start, end

    def __call__(self, value: Number) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return ticks(self.low, self.high)


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in y_axis.ticks():
        y = f"{y_axis(tick):.1f}"
        parts.append(f'<path class="grid" stroke="#d9dde2" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y}" dy="0.35em" text-anchor="end">{short(tick)}</text>')
    base = _HEIGHT - _BOTTOM
    parts.append(f'<path class="axis" stroke="#5a626c" d="M{_LEFT} {base}H{_WIDTH - _RIGHT}"/>')
    for tick in x_axis.ticks():
        x = f"{x_axis(tick):.1f}"
        parts.append(f'<path class="axis" stroke="#5a626c" d="M{x} {base}v4"/>')
        parts.append(f'<text x="{x}" y="{base + 17}" text-anchor="middle">{short(tick)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    middle = (_TOP + base) / 2
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    return parts


def _level(name: str, height: Number, y_axis: _Axis) -> str:
    right, y = _WIDTH - _RIGHT, f"{y_axis(height):.1f}"
    return (
        f'<path class="level" stroke="#5a626c" stroke-dasharray="3 4" d="M{_LEFT} {y}H{right}"/>'
        f'<text class="level" font-size="12" fill="#5a626c" x="{right}" y="{y}" dy="-0.35em" text-anchor="end">'
        f"{escape(name)}</text>"
    )


def _line(index: int, name: str, points: Points, x_axis: _Axis, y_axis: _Axis) -> str:
    path, pen = [], "M"
    marks = []
    for x, y in zip(*points, strict=True):
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        place = x_axis(x), y_axis(y)
        path.append(f"{pen}{place[0]:.1f} {place[1]:.1f}")
        pen = "L"
        marks.append((place, f"{name}: {short(x)}, {short(y)}"))
    drawn = f'<path d="{"".join(path)}" {_stroke(index)}><title>{escape(name)}</title></path>' if path else ""
    if len(marks) <= _MARKED_POINTS:
        dot = f'r="3" class="dot-{_hue(index)}" fill="{_colour(index)}"'
        for (x, y), text in marks:
            drawn += f'<circle cx="{x:.1f}" cy="{y:.1f}" {dot}><title>{escape(text)}</title></circle>'
    return drawn


def _stroke(index: int) -> str:
    dashes = DASHES[index % len(DASHES)]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'class="line line-{_hue(index)}" fill="none" stroke="{_colour(index)}" stroke-width="2.2"{dashed}'


def _hue(index: int) -> int:
    return index % len(COLOURS_LIGHT)


def _colour(index: int) -> str:
    return COLOURS_LIGHT[_hue(index)]


def _in_words(name: str, points: Points) -> str:
    values = _finite(points[1])
    if not values:
        return f"{name}: no values"
    return (
        f"{name}: from {short(values[0])} to {short(values[-1])}, between {short(min(values))} and {short(max(values))}"
    )


def _finite(values: Sequence[Number]) -> list[Number]:
    return [value for value in values if math.isfinite(value)]
