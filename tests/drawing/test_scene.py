"""A scene's geometry, and the files that are written of it."""

import io
import xml.etree.ElementTree as ET

import matplotlib.image
import pytest
from matplotlib.textpath import TextPath

from support.scene_checks import find_faults, smallest_text
from zoo.drawing.boxes import wrap_facts
from zoo.drawing.drawn_file import load_font, write_raster
from zoo.drawing.lettering import cut_text, measure_text, wrap_text
from zoo.drawing.scene import Box, Label, Scene, Stroke, frame_items
from zoo.drawing.vector import write_html, write_svg

SVG = "{http://www.w3.org/2000/svg}"


def sample() -> Scene:
    shapes = [
        Box(0, 0, 120, 40, "attention", "attention-line", tip="16,777,216", name="attention"),
        Label(60, 24, "GQA <32 & 8>", anchor="middle", bold=True),
        Stroke(((60, 80), (60, 41)), arrow=True),
        Label(4, 96, "\x1b[31m", size=10, color="muted"),
    ]
    return frame_items(shapes, "A layer", "attention & nothing else")


@pytest.mark.parametrize("bold", [False, True])
def test_a_text_is_as_wide_as_matplotlib_draws_it(bold):
    text = "Grouped-query attention · 32 × 128"
    font = load_font("bold" if bold else "regular")
    drawn = TextPath((0, 0), text, size=100, prop=font).get_extents().width
    assert measure_text(text, 100, bold) == pytest.approx(drawn, rel=0.02)


def test_a_letter_that_the_font_does_not_have_is_estimated():
    assert measure_text("東京", 10) == 20
    assert measure_text("→", 10) == 6.5


def test_a_long_text_is_cut_or_wrapped():
    assert cut_text("a model of a name", 60, 12).endswith("…")
    assert measure_text(cut_text("a model of a name", 60, 12), 12) <= 60
    lines = wrap_text("what is special about a model in words", 100, 12)
    assert len(lines) > 1 and all(measure_text(line, 12) <= 100 for line in lines)
    assert " ".join(lines) == "what is special about a model in words"


def test_the_svg_has_text_alternatives_and_escapes_what_it_was_given():
    found = ET.fromstring(write_svg(sample()))
    assert found.get("role") == "img" and found.get("aria-label") == "A layer"
    assert found.findtext(f"{SVG}desc") == "attention & nothing else"
    texts = [each.text for each in found.iter(f"{SVG}text")]
    assert texts[0] == "GQA <32 & 8>" and "\x1b" not in texts[1]
    assert found.find(f"{SVG}rect[@data-name='attention']/{SVG}title").text == "16,777,216"


def test_the_svg_needs_no_other_file_and_follows_the_readers_scheme():
    text = write_svg(sample())
    assert "data:font/woff;base64," in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "@media (prefers-color-scheme:dark)" in text
    assert 'class="zoo-drawing dark"' in write_svg(sample(), scheme="dark")


def test_a_page_embeds_the_font_once():
    assert write_html(sample()).count("@font-face") == 2
    assert "@font-face" not in write_svg(sample(), inline=True)


def test_a_png_has_two_pixels_a_unit_and_shows_the_box():
    scene = sample()
    picture = matplotlib.image.imread(io.BytesIO(write_raster(scene, "png")))
    assert picture.shape[:2] == (round(2 * scene.height), round(2 * scene.width))
    inside = picture[2 * (20 + 6), 2 * (20 + 60)][:3] * 255
    assert tuple(inside.round().astype(int)) == (0xDC, 0xE8, 0xFB)


def test_the_checks_find_what_is_wrong():
    wrong = Scene(
        100,
        100,
        (
            Box(0, 0, 50, 50),
            Box(40, 40, 50, 50),
            Label(45, 20, "over a border"),
            Label(46, 21, "over a text"),
            Stroke(((60, 0), (60, 90))),
            Label(90, 95, "beyond", size=20),
        ),
        "wrong",
    )
    found = " ".join(find_faults(wrong))
    for fault in ("boxes overlap", "text over a border", "texts overlap", "line through text", "beyond the canvas"):
        assert fault in found
    assert find_faults(sample()) == []
    assert smallest_text(Scene(1200, 10, (Label(0, 9, "a", size=18),), "")) == 9


def test_a_row_is_broken_between_its_facts():
    lines = wrap_facts("128 heads · QK nope head dim 128 · tied", 150)
    assert lines == ["128 heads ·", "QK nope head dim 128 ·", "tied"]
    assert wrap_facts("a fact that is wider than a line · tied", 100)[-1] == "line · tied"
