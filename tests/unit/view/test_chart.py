# SPDX-License-Identifier: Apache-2.0
import math
import xml.etree.ElementTree as ET

import pytest

from opendino.view import _chart


def drawn(curves, **settings):
    return ET.fromstring(_chart.line_chart(curves, title="t", **settings))


def points_of(svg, index=0):
    path = [p for p in svg.iter("path") if "line" in p.get("class").split()][index].get("d")
    return [tuple(map(float, place.split(" "))) for place in path.replace("L", "M").split("M")[1:]]


def test_a_straight_line_is_drawn_straight_and_upwards():
    svg = drawn({"a": ([0, 1, 2, 4], [10, 20, 30, 50])})
    (x0, y0), (x1, y1), _, (x3, y3) = points_of(svg)
    assert x1 - x0 == pytest.approx((x3 - x0) / 4, abs=0.2)
    assert y1 - y0 == pytest.approx((y3 - y0) / 4, abs=0.2)
    assert y3 < y0  # larger is higher, and SVG counts downwards
    _, _, width, height = map(float, svg.get("viewBox").split(" "))
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points_of(svg))


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0])
def test_a_level_curve_and_a_single_point(value):
    assert all(math.isfinite(c) for place in points_of(drawn({"a": ([1, 2], [value, value])})) for c in place)
    assert len(points_of(drawn({"a": ([1], [value])}))) == 1


def test_values_that_are_not_finite_leave_a_gap():
    svg = drawn({"a": ([0, 1, 2, 3], [1.0, math.nan, 2.0, 3.0])})
    path = next(p.get("d") for p in svg.iter("path") if "line" in p.get("class").split())
    assert path.count("M") == 2
    assert len(points_of(svg)) == 3
    nothing = drawn({"a": ([0, 1], [math.nan, math.inf])})
    assert "no values" in nothing.get("aria-label")


def test_lines_differ_by_more_than_colour():
    svg = drawn({name: ([0, 1], [0, i]) for i, name in enumerate("abcdefg")})
    lines = [p for p in svg.iter("path") if "line" in p.get("class").split()]
    assert len({p.get("stroke-dasharray") for p in lines}) == len({p.get("stroke") for p in lines}) == 7


def test_it_says_itself_in_words():
    svg = drawn({"loss <b>": ([0, 1, 2], [3.0, 4.0, 1.5])})
    assert svg.get("aria-label") == "t. loss <b>: from 3 to 1.5, between 1.5 and 4"
    assert svg.get("role") == "img"


def test_levels_widen_the_axis_and_are_named():
    svg = drawn({"a": ([0, 1], [10, 20])}, levels={"pixels": 80.0})
    level = next(p for p in svg.iter("path") if p.get("class") == "level")
    height = float(level.get("d").split(" ")[1].split("H")[0])
    assert 0 < height < min(y for _, y in points_of(svg))
    assert "pixels" in [text.text for text in svg.iter("text")]


def test_thinning_keeps_the_ends_and_the_mean():
    xs = list(range(10_001))
    ys = [math.sin(x / 500) for x in xs]
    thin_xs, thin_ys = _chart.thin(xs, ys)
    assert len(thin_xs) <= 400
    assert (thin_xs[0], thin_xs[-1], thin_ys[0], thin_ys[-1]) == (0, 10_000, ys[0], ys[-1])
    assert max(abs(math.sin(x / 500) - y) for x, y in zip(thin_xs, thin_ys, strict=True)) < 1e-3
    assert _chart.thin([1, 2], [3, 4]) == ([1, 2], [3, 4])
    with pytest.raises(ValueError, match="2 abscissae has 1 ordinates"):
        _chart.thin([1, 2], [3])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.013, 0.048, [0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045]),
        (-1.2, 1.1, [-1, -0.5, 0, 0.5, 1]),
        (9000, 61_000, [10_000, 20_000, 30_000, 40_000, 50_000, 60_000]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert _chart.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (2e-5, "2e-05"), (1500, "1500"), (20_000, "20k"), (1.5e6, "1.5M"), (-3e9, "-3G")],
)
def test_short_numbers(value, text):
    assert _chart.short(value) == text
