# SPDX-License-Identifier: Apache-2.0
import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opendino.errors import ConfigError, DataError
from opendino.view import _chart, report
from opendino.view._chart import COLOURS_DARK, COLOURS_LIGHT

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Checks that tags close in order, and keeps them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, wanted):
        return [attrs for tag, attrs in self.tags if tag == wanted]


def picture(side=8, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8))


@pytest.fixture
def whole_page():
    return report.page(
        "A run",
        [
            report.section(
                "Figures",
                report.table(["row", "k-NN"], [["pixels", 63.2], ["trained", 63.1]], strong_rows=[1]),
                report.figure_curves({"loss": ([0, 1], [5, 4]), "k-NN": ([0, 1], [1, 2])}, title="Curves"),
                report.paragraph("Below it."),
                text="What came of it.",
            ),
            report.section(
                "Pictures",
                report.image_grid([picture(), picture(200)], alts=["a", "b"], marks=["right", "wrong"], lossy=True),
                report.image(np.zeros((4, 4), np.uint8), alt="black"),
            ),
        ],
        lead="In short.",
        footer="Made by a test.",
    )


def test_a_page_is_well_formed_and_fetches_nothing(whole_page):
    read = Reader(whole_page)
    for tag, attrs in read.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "srcset", "data", "poster"):
            assert attrs.get(name, "data:").startswith("data:"), (tag, attrs)
    assert not re.search(r"https?:|@import|url\(|@font-face", whole_page)
    assert dict(read.tags)["html"] == {"lang": "en"}


def test_everything_to_see_is_said_too(whole_page):
    read = Reader(whole_page)
    assert [image["alt"] for image in read.all("img")] == ["a (right)", "b (wrong)", "black"]
    for svg in read.all("svg"):
        assert svg.get("aria-label") or svg.get("aria-hidden") == "true"
    for head in read.all("th"):
        assert head["scope"] == "col"


def test_lines_have_colours_for_both_grounds(whole_page):
    for index, attrs in enumerate(a for a in Reader(whole_page).all("path") if "line" in a.get("class", "").split()):
        assert attrs["stroke"] in COLOURS_LIGHT, index
        assert (
            f".{attrs['class'].split()[1]} {{ stroke: {COLOURS_DARK[COLOURS_LIGHT.index(attrs['stroke'])]}; }}"
            in whole_page
        )
    words = re.findall(r"var\((--[a-z]+)\)", whole_page)
    assert all(whole_page.count(f"{word}:") == 2 for word in words)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(
    ("colours", "ground"), [(COLOURS_LIGHT, "#ffffff"), (COLOURS_DARK, "#14171a")], ids=["light", "dark"]
)
def test_lines_have_the_contrast_that_graphics_need(colours, ground):
    # WCAG 2.2, 1.4.11: at least 3 to 1.
    for colour in colours:
        bright, dim = sorted([luminance(colour), luminance(ground)], reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 3, colour


def test_pictures_come_back_as_they_were():
    shown = Reader(report.image_grid([picture(8, 3), picture(8, 4)], alts=["", ""]))
    for attrs, seed in zip(shown.all("img"), (3, 4), strict=True):
        data = base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture(8, seed)))
        assert (attrs["width"], attrs["height"]) == ("8", "8")


def test_photographs_may_be_jpeg_and_small_pictures_never():
    shown = Reader(report.image_grid([picture(), picture(256)], alts=["", ""], lossy=True))
    kinds = [attrs["src"][11:15] for attrs in shown.all("img")]
    assert kinds == ["png;", "jpeg"]


def test_text_is_escaped():
    evil = '"><script>x</script>&'
    pieces = report.section(
        evil,
        report.table([evil], [[evil]], caption=evil),
        report.image_grid([picture()], alts=[evil], captions=[evil], title=evil, caption=evil),
        report.figure_curves({evil: ([0, 1], [0, 1]), "b": ([0], [0])}, title=evil, x_label=evil, levels={evil: 1.0}),
        report.paragraph(evil),
        text=evil,
    )
    read = Reader(report.page(evil, [pieces], lead=evil, footer=evil))
    assert read.all("script") == []
    assert read.all("img")[0]["alt"] == evil
    assert evil in read.words


def test_table_cells():
    html = report.table(["a", "b", "c"], [["x", 1.25, 3], ["y", None, 4]], digits=1)
    assert re.findall(r"<td[^>]*>([^<]*)</td>", html) == ["x", "1.2", "3", "y", "", "4"]
    assert html.count('<td class="number">') == 4
    with pytest.raises(DataError, match="a row has 1 cells, the header 2"):
        report.table(["a", "b"], [["x"]])


def test_a_grid_wants_a_word_for_every_picture():
    with pytest.raises(DataError, match="2 pictures, 1 alts"):
        report.image_grid([picture(), picture()], alts=["one"])


def test_writing_leaves_only_the_page(tmp_path):
    path = report.write(tmp_path / "deep" / "report.html", report.page("x", []))
    report.write(path, report.page("y", []))
    assert "<h1>y</h1>" in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_the_name_of_a_picture_says_what_it_is():
    assert not report.is_page("a/b.PNG")
    assert report.is_page(Path("x.html"))
    for name in ("x.bmpx", "x", "x.png.txt"):
        with pytest.raises(ConfigError, match=r"give a name in .png or .html"):
            report.is_page(name)


def test_nothing_of_the_page_is_unused():
    """A piece that no page uses, or a rule of the style sheet that no piece uses, is one too many to keep."""
    home = Path(report.__file__).parents[1]
    code = "".join(path.read_text() for path in home.rglob("*.py"))
    made = Path(report.__file__).read_text() + Path(_chart.__file__).read_text()
    for name in re.findall(r"^def ([a-z]\w*)\(", Path(report.__file__).read_text(), re.MULTILINE):
        assert re.search(rf"\breport\.{name}\(", code), name
    style = re.sub(r"/\*.*?\*/", "", Path(report.__file__).with_name("report.css").read_text(), flags=re.DOTALL)
    for name in set(re.findall(r"\.([a-z][a-z-]+)\b", re.sub(r"\{[^{}]*\}", "", style))):
        assert re.search(rf"[\"' ]{name}[\"' {{]", made), name
